"""Webhooks: addresses that are taken and refused, signatures OpenAI's client accepts, tries, and where they go."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tunesmith.cli.server_verbs import make_webhooks
from tunesmith.database import transaction
from tunesmith.errors import InputError
from tunesmith.serve.records import outbox
from tunesmith.serve.records.outbox import OUTBOX, Event
from tunesmith.serve.webhooks import (
    PAUSES_S,
    Address,
    Webhooks,
    is_outside,
    parse_address,
    parse_secret,
    resolve,
    signature,
)

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = parse_secret(SECRET)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x", "ftp://hooks.example/x", "file:///etc/passwd", "//hooks.example/x", "hooks.example",
        "https://", "https:///x", "https://user@hooks.example/", "https://user:word@hooks.example/",
        "https://hooks.example@127.0.0.1/", "https://hooks.example\\@127.0.0.1/", "https://hooks.example#@127.0.0.1/",
        "https://hooks.example/\n", "https://hooks.example\r\nHost: x/", "https://hooks.example:99999/",
        "https://hooks.example:x/", "https://höoks.example/", "https://hooks..example/", "https://-x.example/",
        "javascript:alert(1)", "gopher://hooks.example/", "https:// hooks.example/", "", "https://[::1", "https://./",
    ],
)  # fmt: skip
def test_addresses_that_are_not_taken(url: str) -> None:
    with pytest.raises(InputError, match="webhook"):
        parse_address(url)


def test_addresses_that_are_taken() -> None:
    assert parse_address("https://Hooks.Example:8443/a/b?c=d") == Address("hooks.example", 8443, "/a/b?c=d")
    assert parse_address("https://hooks.example") == Address("hooks.example", 443, "/")


@pytest.mark.parametrize(
    "number",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1:2:3:4:80ff:fffe", "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_inner_addresses_are_not_connected_to(number: str) -> None:
    assert not is_outside(number)
    for numbers in ([number], ["93.184.216.34", number]):
        with pytest.raises(InputError, match="inside"):
            resolve(Address("x.example", 443, "/"), inside=False, look_up=lambda *a, n=numbers, **k: found(n))
    assert resolve(Address("x.example", 443, "/"), inside=True, look_up=lambda *a, **k: found([number])) == number


def found(numbers: list[str]) -> list[tuple[object, ...]]:
    return [(0, 0, 0, "", (number, 443)) for number in numbers]


def test_outer_addresses_are() -> None:
    for number in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"):
        assert is_outside(number)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", "not base64!", "whsec_MfKQ9r8GKYqrTwjUPD8I"])
def test_a_weak_secret_is_refused_with_a_fresh_one(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_WEBHOOK_SECRET", secret)
    with pytest.raises(InputError, match="whsec_"):
        make_webhooks(["https://hooks.example"], inside=False)
    assert make_webhooks([], inside=False) is None


def test_openais_client_takes_the_signature() -> None:
    client = openai.OpenAI(api_key="x", webhook_secret=SECRET)
    event = Event("evt_1", 100, "eval.run.succeeded", "evalrun_1")
    headers = signature(event, key=KEY, sent=int(time.time()))
    read = client.webhooks.unwrap(event.body.decode(), headers)
    assert read.type == "eval.run.succeeded" and read.data.id == "evalrun_1"
    for bad in ({**headers, "webhook-id": "evt_2"}, signature(event, key=b"x" * 24, sent=int(time.time()))):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(event.body.decode(), bad)


class Receiver:
    """An https server of this machine that answers with the statuses given, then 200."""

    def __init__(self, folder: Path, statuses: list[int]) -> None:
        self.got: list[tuple[dict[str, str], str]] = []
        self.news = threading.Semaphore(0)
        certificate, key = folder / "cert.pem", folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-keyout", key, "-out", certificate,
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
            check=True, capture_output=True,
        )  # fmt: skip
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append((dict(self.headers.items()), body.decode()))
                self.send_response(statuses.pop(0) if statuses else 200)
                self.send_header("location", "https://localhost:1/elsewhere")
                self.end_headers()
                outer.news.release()

            def log_message(self, *parts: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.trust = ssl.create_default_context(cafile=str(certificate))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.server_address[1]}/hook"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path, [500, 302])
    yield receiver
    receiver.server.shutdown()


def tell(*events: tuple[str, str]) -> None:
    with transaction() as connection:
        for kind, about in events:
            outbox.announce(connection, kind, about=about)


def waiting() -> list[Any]:
    with transaction() as connection:
        return list(connection.execute(OUTBOX.select().order_by(OUTBOX.c.number)).mappings())


def wait_until_empty() -> None:
    end = time.monotonic() + 20
    while waiting():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_event_is_tried_again_and_no_redirect_is_followed(receiver: Receiver, fast: None) -> None:
    hooks = Webhooks([receiver.url], secret=SECRET, inside=True, pauses_s=(0, 0, 0), context=receiver.trust)
    hooks.start()
    tell(("eval.run.failed", "evalrun_9"))
    for _ in range(3):
        assert receiver.news.acquire(timeout=20)
    tell(("eval.run.canceled", "evalrun_10"))
    assert receiver.news.acquire(timeout=20)
    wait_until_empty()
    hooks.stop()
    client = openai.OpenAI(api_key="x", webhook_secret=SECRET)
    read = [client.webhooks.unwrap(body, headers) for headers, body in receiver.got]
    assert [event.type for event in read] == ["eval.run.failed"] * 3 + ["eval.run.canceled"]
    assert len({event.id for event in read}) == 2
    assert all("authorization" not in {name.lower() for name in headers} for headers, _ in receiver.got)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.serve.webhooks.LOOK_S", 0.01)


def test_events_survive_a_stop_and_are_sent_after_the_next_start(receiver: Receiver, fast: None) -> None:
    options: dict[str, Any] = {"secret": SECRET, "inside": True, "context": receiver.trust}
    outbox.listen([receiver.url])
    tell(("fine_tuning.job.succeeded", "ftjob-1"), ("fine_tuning.job.failed", "ftjob-2"))
    first = Webhooks([receiver.url], pauses_s=(3600,), **options)
    first.start()
    for _ in range(2):
        assert receiver.news.acquire(timeout=20)
    first.stop()
    put_off = waiting()
    assert [row["tries"] for row in put_off] == [1, 1], "they were refused"
    with transaction() as connection:
        connection.execute(OUTBOX.update().values(due=0))  # the hour is over
    second = Webhooks([receiver.url], **options)
    second.start()
    wait_until_empty()
    second.stop()
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert ids == [row["id"] for row in put_off] * 2 and len(set(ids)) == 2


def test_what_is_not_brought_about_is_not_told_and_nobody_is_told_twice() -> None:
    outbox.listen(["https://a.example/", "https://b.example/"])
    with pytest.raises(KeyError), transaction() as connection:
        outbox.announce(connection, "eval.run.failed", about="evalrun_1")
        raise KeyError
    assert waiting() == []
    tell(("eval.run.failed", "evalrun_1"))
    assert [row["url"] for row in waiting()] == ["https://a.example/", "https://b.example/"]
    one, other = outbox.take(lease_s=60), outbox.take(lease_s=60)
    assert (
        one and other and one.event.id == other.event.id and {one.url, other.url} == {row["url"] for row in waiting()}
    )
    assert outbox.take(lease_s=60) is None, "both are being sent"
    outbox.drop(one)
    outbox.put_off(other, pause_s=10**6)
    again = outbox.take(lease_s=60)
    assert again and again.url == other.url and again.tries == 2, "the clock was set back"
    outbox.listen([])
    assert waiting() == []
    tell(("eval.run.failed", "evalrun_2"))
    assert waiting() == [], "nobody listens"


def test_an_event_that_is_never_taken_is_given_up(receiver: Receiver, fast: None) -> None:
    hooks = Webhooks([receiver.url], secret=SECRET, inside=True, pauses_s=(0,))  # its certificate is not trusted
    hooks.start()
    tell(("eval.run.failed", "evalrun_9"))
    wait_until_empty()
    hooks.stop()
    assert receiver.got == []
    assert sum(PAUSES_S) > 3 * 86_400


def test_a_receiver_inside_gets_nothing(receiver: Receiver, fast: None) -> None:
    hooks = Webhooks([receiver.url], secret=SECRET, pauses_s=(), context=receiver.trust)
    hooks.start()
    tell(("eval.run.failed", "evalrun_9"))
    wait_until_empty()
    hooks.stop()
    assert receiver.got == []
