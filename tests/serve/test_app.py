"""OpenAI's client against the server: replies, streams, failures and clients that go away."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tunesmith.adapter import load_adapter
from tunesmith.chat import Message
from tunesmith.generate import LocalContender
from tunesmith.model import load_base
from tunesmith.serve.app import create_app
from tunesmith.serve.models import ServedModel, ServedModels
from tunesmith.serve.reply import Ask, Choice, Item, Piece
from tunesmith.serve.run import running
from tunesmith.serve.scheduler import Job

HELLO: list[Any] = [{"role": "user", "content": "My card is lost, case 7."}]
GREEDY = {"temperature": 0, "max_tokens": 24}


def ask(client: openai.OpenAI, model: str, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": model, "messages": HELLO, **GREEDY, **options})


def text_of(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def test_models_are_listed_with_their_pins(client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == ["red", "blue", "plain"]
    red, plain = client.models.retrieve("red"), client.models.retrieve("plain")
    assert red.object == "model" and red.created > 0
    assert red.model_extra and plain.model_extra
    assert red.model_extra["base_sha256"] == plain.model_extra["base_sha256"]
    assert red.model_extra["adapter_sha256"] and plain.model_extra["adapter_sha256"] is None
    assert httpx.get(url.removesuffix("/v1") + "/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("name", ["red", "blue", "plain"])
def test_the_greedy_reply_is_the_one_of_evaluation(
    client: openai.OpenAI, targets: dict[str, str], tiny_base: Path, name: str
) -> None:
    base = load_base(str(tiny_base), precision="float32")
    model = None if name == "plain" else load_adapter(base, Path(targets[name]))
    messages = [Message("user", HELLO[0]["content"])]
    (expected,) = LocalContender(name, base, model).answer([messages], max_new_tokens=24)
    completion = ask(client, name)
    assert text_of(completion) == expected.text
    assert completion.choices[0].finish_reason == expected.finish_reason
    assert completion.usage.prompt_tokens == expected.prompt_tokens
    assert completion.usage.completion_tokens == expected.completion_tokens
    assert completion.model == name and completion.system_fingerprint.startswith("fp_")
    assert completion._request_id.startswith("req_")


def test_interleaved_models_give_each_its_own_reply(client: openai.OpenAI) -> None:
    alone = {name: text_of(ask(client, name)) for name in ("red", "blue", "plain")}
    assert len(set(alone.values())) == 3
    got: list[tuple[str, str]] = []

    def work(names: tuple[str, ...]) -> None:
        got.extend((name, text_of(ask(client, name))) for name in names)

    orders = [("red", "blue", "plain"), ("plain", "red", "blue"), ("blue", "plain", "red"), ("red", "red", "plain")]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 12
    assert all(text == alone[name] for name, text in got)


def test_a_stream_adds_up_to_the_whole_reply(client: openai.OpenAI) -> None:
    whole = ask(client, "red")
    chunks = list(ask(client, "red", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text_of(whole)
    assert len(chunks) > 4
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]].count(None) == len(chunks) - 2
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_done(url: str) -> None:
    body = {"model": "red", "messages": HELLO, "max_tokens": 3, "stream": True}
    response = httpx.post(f"{url}/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert all("usage" not in event for event in events)
    assert response.headers["x-request-id"].startswith("req_")


def test_stop_strings_cut_the_reply_in_stream_and_whole(client: openai.OpenAI) -> None:
    full = text_of(ask(client, "red"))
    stop = next(full[at : at + 2] for at in range(5, len(full)) if "\ufffd" not in full[at : at + 2])
    cut = ask(client, "red", stop=["never there", stop])
    assert text_of(cut) == full[: full.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 24
    streamed = ask(client, "red", stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text_of(cut)


def test_a_seed_repeats_a_sampled_reply(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9}
    first, again, other = (text_of(ask(client, "red", seed=seed, **options)) for seed in (1, 1, 2))
    assert first == again != other
    assert text_of(ask(client, "red", temperature=1.5, top_p=0)) == text_of(ask(client, "red"))
    assert text_of(ask(client, "red", temperature=1e-30)) == text_of(ask(client, "red"))


def test_roles_parts_and_harmless_fields(client: openai.OpenAI) -> None:
    system = [{"role": "system", "content": "Be brief."}, *HELLO]
    developer = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        *HELLO,
    ]
    plain = ask(client, "red", messages=system)
    extra = {"metadata": {"a": "b"}, "user": "me", "store": False, "n": 1, "extra_body": {"unknown": 1, "tools": []}}
    assert text_of(ask(client, "red", messages=developer, **extra)) == text_of(plain)
    assert text_of(plain) != text_of(ask(client, "red"))
    limited = ask(client, "red", max_tokens=None, max_completion_tokens=2)
    assert limited.usage.completion_tokens == 2 and limited.choices[0].finish_reason == "length"


class Broken(ServedModels):
    """Fails at once, or after two pieces of text."""

    pieces = 0

    def submit(self, served: ServedModel, ask: Ask, *, put: Callable[[Item], None], owner: str = "") -> Job:
        for _ in range(self.pieces):
            put(Piece(0, "x"))
        try:
            raise ValueError(f"inside: {ask.messages[0].content}")
        except ValueError as error:
            put(error)
        return Job([], [], put)


def test_a_failure_says_nothing_of_its_inside_and_logs_no_prompt(
    served: ServedModels, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken({model.name: model for model in served})
    with running(create_app(broken)) as url, caplog.at_level(logging.DEBUG):
        client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, "red")
        assert caught.value.type == "server_error" and caught.value.request_id
        assert caught.value.request_id in caplog.text and "ValueError" in caplog.text
        broken.pieces = 2
        with pytest.raises(openai.APIError, match="failed to answer"):
            list(ask(client, "red", stream=True))
    assert "inside" not in caught.value.message
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("tunesmith", "uvicorn"))]
    assert len(ours) >= 2 and not any("card is lost" in text for text in ours)


class Slow(ServedModels):
    """20 ms between pieces; keeps what a request got, and the event that ends it."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        super().__init__(models)
        self.items: list[Item] = []
        self.begun = threading.Event()

    def submit(self, served: ServedModel, ask: Ask, *, put: Callable[[Item], None], owner: str = "") -> Job:
        def slow_put(item: Item) -> None:
            self.items.append(item)
            self.begun.set()
            time.sleep(0.02)
            put(item)

        job = super().submit(served, replace(ask, pieces=True), put=slow_put)
        self.cancelled = job.cancelled
        return job


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_generation(served: ServedModels, stream: bool) -> None:
    slow = Slow({model.name: model for model in served})
    body = {"model": "plain", "messages": HELLO, "max_tokens": 400, "stream": stream, "temperature": 2, "seed": 3}
    with running(create_app(slow)) as url:
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        assert slow.begun.wait(20)
        if stream:
            assert connection.getresponse().readline().startswith(b"data: ")
        assert connection.sock
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        assert slow.cancelled.wait(5)
        engine = served.get("plain").engine
        for _ in range(2):  # the second comes after a look for those who went
            engine.scheduler.call(lambda: None).result(5)
        assert engine.scheduler.load == (0, 0)
        assert len(slow.items) < 300 and not any(isinstance(item, Choice) for item in slow.items)
