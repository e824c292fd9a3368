"""The listening process and the two commands: ports, hosts, signals, output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from tunesmith.cli.chat import chat
from tunesmith.cli.serve import parse_models
from tunesmith.cli.serve import serve as serve_command
from tunesmith.errors import InputError
from tunesmith.serve import heads
from tunesmith.serve.app import create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import check_host, listen, running, serve


def test_a_server_in_a_thread_stops_and_frees_its_port(served: ServedModels) -> None:
    before = threading.active_count()
    with running(create_app(served)) as url:
        assert httpx.get(f"{url}/models").status_code == 200
        port = int(url.split(":")[2].removesuffix("/v1"))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")
    assert threading.active_count() <= before
    listen("127.0.0.1", port).close()


def answer_to(url: str, *pieces: bytes) -> bytes:
    """All that comes back on a connection that sends these, until the server ends it."""
    with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port), timeout=10) as sent:
        answered = b""
        with contextlib.suppress(ConnectionError):  # an answer may be there before all is sent
            for piece in pieces:
                sent.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while piece := sent.recv(65536):
                answered += piece
        return answered


def test_headers_come_in_time_and_in_bounds(served: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_S", 0.4)
    head = b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\n"
    with running(create_app(served)) as url:
        assert answer_to(url) == b""
        assert answer_to(url, head).startswith(b"HTTP/1.1 408 ")
        assert answer_to(url, head, *[b"x-a: " + b"a" * 20_000 + b"\r\n"] * 40).startswith(b"HTTP/1.1 431 ")
        assert answer_to(url, head, b"x-a: ", *[b"a" * 20_000] * 40).startswith(b"HTTP/1.1 431 ")
        assert answer_to(url, b"\x16\x03\x01 no HTTP \r\n\r\n").startswith(b"HTTP/1.1 400 ")
        late_body = answer_to(url, head + b"connection: close\r\ncontent-length: 300000\r\n\r\n" + b"a" * 300_000)
        assert late_body.startswith(b"HTTP/1.1 404 ")
        with httpx.Client() as client:
            for pause_s in (0.0, 0.6, 0.0):  # longer than a head may take
                time.sleep(pause_s)
                assert client.get(f"{url}/models").status_code == 200


def test_a_port_in_use_is_told(served: ServedModels) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} .* in use"), running(create_app(served), port=port):
            pass


def test_addresses_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "models.example", ""):
        with pytest.raises(InputError, match="no API key"):
            listen(host, 0)
    for port in (-1, 70000):
        with pytest.raises(InputError, match="cannot be used"):
            listen("127.0.0.1", port)
    monkeypatch.setenv("TUNESMITH_API_KEY", "k")
    check_host("0.0.0.0")


def signal_after_a_reply(url: str, model: str, number: signal.Signals) -> threading.Thread:
    """A thread that waits for the server, asks it once and then sends this process the signal."""

    def work() -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=9)) as client:  # waits longer after each
                client.post(f"{url}/chat/completions", json=body, timeout=20).raise_for_status()
        finally:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_sigterm_ends_the_server_without_an_error(served: ServedModels) -> None:
    before = signal.getsignal(signal.SIGTERM)
    urls: list[str] = []
    threads: list[threading.Thread] = []

    def ready(url: str) -> None:
        urls.append(url)
        threads.append(signal_after_a_reply(url, "red", signal.SIGTERM))

    serve(served, port=0, ready=ready)
    threads[0].join()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{urls[0]}/models")


def test_the_command_serves_until_ctrl_c(targets: dict[str, str]) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    thread = signal_after_a_reply(url, "support@prod", signal.SIGINT)
    options = ["--model", f"support@prod={targets['red']}", "--model", f"base={targets['plain']}"]
    code, document, words = run_command(serve_command, *options, "--port", str(port), "--json")
    thread.join()
    assert code == 0
    assert json.loads(document) == {"url": url, "models": ["support@prod", "base"]}
    lines = words.splitlines()
    assert lines[0].startswith("support@prod: adapter ") and lines[1].startswith("base: base ")
    assert lines[-2:] == [f"Serving on {url} (Ctrl-C stops)", "Stopped."]


def test_the_model_option_is_name_and_target() -> None:
    assert parse_models(["a=x/y", "support@prod=z=1"]) == {"a": "x/y", "support@prod": "z=1"}
    with pytest.raises(InputError, match="(?s)--model x .*--model a/b=c .*--model d is given twice"):
        parse_models(["x", "a/b=c", "d=1", "d=2"])


def run_command(command: Callable[..., None], *arguments: str, typed: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command of the command line."""
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments), input=typed)
    return result.exit_code, result.stdout, result.stderr


def test_chat_answers_once_with_the_reply_only(tiny_base: Path, targets: dict[str, str]) -> None:
    plain = ("--message", "hello", "--max-tokens", "8")
    code, reply, _ = run_command(chat, str(tiny_base), *plain)
    assert code == 0 and reply
    code, document, _ = run_command(chat, str(tiny_base), *plain, "--json")
    answer = json.loads(document)
    assert answer["reply"] + "\n" == reply
    assert answer["tokens"] <= 8 and answer["latency_s"] > 0 and answer["finish_reason"] in ("stop", "length")
    assert json.loads(run_command(chat, targets["red"], *plain, "--json")[1])["reply"] != answer["reply"]
    assert (
        json.loads(run_command(chat, str(tiny_base), *plain, "--system", "Hm", "--json")[1])["reply"] != answer["reply"]
    )


def test_a_conversation_goes_on_until_quit(tiny_base: Path) -> None:
    typed = "hello\n\n/reset\nhello\n" + "a" * 600 + "\nhello\n/quit\nnever\n"
    code, words, errors = run_command(chat, str(tiny_base), "--max-tokens", "5", typed=typed)
    assert code == 0
    _hello, first, empty, reset, second, *_rest = words.split("> ")
    assert first == second  # /reset forgot the first
    assert empty == reset == ""
    assert "do not fit" in errors and "never" not in words
    assert run_command(chat, str(tiny_base), typed="")[0] == 0  # Ctrl-D at once
