"""What a request costs however it ends, and what one for a model that is being loaded costs the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread
from fastapi import FastAPI

from tunesmith.errors import ServeError
from tunesmith.facts import weights_sha256
from tunesmith.serve.access import Identity
from tunesmith.serve.app import create_app
from tunesmith.serve.limits import RateLimits
from tunesmith.serve.models import ServedModel, ServedModels
from tunesmith.serve.records.models import Made
from tunesmith.serve.reply import Ask, Choice, Item, Piece, Writer
from tunesmith.serve.run import running
from tunesmith.serve.scheduler import Job
from tunesmith.serve.streaming import LOADING

CHAT = {"messages": [{"role": "user", "content": "My card is lost, case 7."}], "max_tokens": 6}
TEXT: dict[str, Any] = {"prompt": ["My card", "is lost"], "max_tokens": 6, "n": 2, "temperature": 1, "seed": 3}
TOLD = {"prompt": "My card is lost", "max_tokens": 0, "echo": True}
PATHS = [("chat/completions", CHAT), ("completions", TEXT)]
WAIT_S = 10.0


class Spent(RateLimits):
    """Keeps what is spent, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.told = threading.Event()

    def spend_tokens(self, identity: Identity, tokens: int) -> None:
        self.tokens.append(tokens)
        self.told.set()


class Endless(ServedModels):
    """Makes replies and never gives their end; `failure` comes in its place."""

    failure: Exception | None = None

    def __init__(self, models: ServedModels) -> None:
        super().__init__({model.name: model for model in models})
        self.left = 0  # replies that are not made yet
        self.made = threading.Event()

    def submit(self, served: ServedModel, ask: Ask, *, put: Callable[[Item], None], owner: str = "") -> Job:
        def put_all_but_the_end(item: Item) -> None:
            if not isinstance(item, Choice):
                put(item)
                return
            self.left -= 1
            if not self.left:
                self.made.set()
                if self.failure:
                    put(self.failure)

        return super().submit(served, ask, put=put_all_but_the_end)


class Worded(ServedModels):
    """An engine that sends text without ids, and not the end."""

    def submit(self, served: ServedModel, ask: Ask, *, put: Callable[[Item], None], owner: str = "") -> Job:
        ids = ask.prompt(served.base)
        writers = [Writer(served.base, ask, index=index, prompt_tokens=len(ids), limit=9) for index in range(ask.n)]
        for writer in writers:
            put(Piece(writer.index, "case"))
            put(Piece(writer.index, " closed"))
        return Job(ids, writers, put)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.serve.streaming.POLL_S", 0.02)


def leave(url: str, body: dict[str, Any], *, made: threading.Event) -> None:
    """Ask, and go away once all is made: from a stream after its first event, from a whole answer before it."""
    if body["stream"]:
        with httpx.stream("POST", url, json=body, timeout=WAIT_S) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            assert made.wait(WAIT_S)
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=0.2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("end", ["whole", "left", "failed"])
def test_a_request_costs_the_same_however_it_ends(
    served: ServedModels, url: str, path: str, body: dict[str, Any], stream: bool, end: str
) -> None:
    usage = httpx.post(f"{url}/{path}", json={**body, "model": "red"}, timeout=WAIT_S).json()["usage"]
    body = {**body, "model": "red", "stream": stream}
    models, spent = Endless(served), Spent()
    models.left = 4 if "n" in body else 1
    models.failure = ValueError("broken") if end == "failed" else None
    app = create_app(served if end == "whole" else models, limits=spent)
    with running(app) as another:
        if end == "left":
            leave(f"{another}/{path}", body, made=models.made)
        else:
            httpx.post(f"{another}/{path}", json=body, timeout=WAIT_S)
        assert spent.told.wait(WAIT_S)
    assert spent.tokens == [usage["total_tokens"]]
    (red,) = (line for line in app.state.metrics.text().splitlines() if "red" in line and "completion" in line)
    assert red.endswith(f" {usage['completion_tokens']}")


def test_what_is_left_of_an_engine_without_ids_costs_its_text(served: ServedModels) -> None:
    spent, begun = Spent(), threading.Event()
    begun.set()
    model = served.get("red")
    with running(create_app(Worded({"red": model}), limits=spent)) as url:
        leave(f"{url}/completions", {**TEXT, "model": "red", "stream": True}, made=begun)
        assert spent.told.wait(WAIT_S)
    count = model.base.renderer.count_tokens
    assert spent.tokens == [sum(map(count, TEXT["prompt"])) + 4 * count("case closed")]


def test_a_prompt_alone_costs_itself_and_a_refused_one_nothing(served: ServedModels) -> None:
    spent = Spent()
    with running(create_app(served, limits=spent)) as url:
        for stream in (False, True):
            httpx.post(f"{url}/completions", json={**TOLD, "model": "red", "stream": stream})
        assert spent.tokens == [len(str(TOLD["prompt"]))] * 2
        too_long = {**TEXT, "model": "red", "prompt": ["short", "x" * 5000]}
        assert httpx.post(f"{url}/completions", json=too_long).status_code == 400
    assert len(spent.tokens) == 2


class Loading(ServedModels):
    """The model `slow` is loaded while the gate is shut."""

    def __init__(self, models: ServedModels) -> None:
        super().__init__({model.name: model for model in models})
        self.gate = threading.Event()
        self.asked = 0

    def get(self, name: str, *, owner: str = "") -> ServedModel:
        self.asked += 1
        if name == "slow" and not self.gate.wait(WAIT_S):
            raise ServeError("The gate stayed shut.", "")
        return replace(super().get("red"), name=name)


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_a_model_that_is_being_loaded_keeps_no_other_request_waiting(
    served: ServedModels, path: str, body: dict[str, Any]
) -> None:
    models = Loading(served)
    statuses = asyncio.run(asked_while_loading(create_app(models), models, path=f"/v1/{path}", body=body))
    assert statuses == [200] * (LOADING + 3)


async def asked_while_loading(app: FastAPI, models: Loading, *, path: str, body: dict[str, Any]) -> list[int]:
    """The statuses of those that wait for the model, once others have been answered; two threads are for these."""
    to_thread.current_default_thread_limiter().total_tokens = LOADING + 2
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        slow = [asyncio.create_task(client.post(path, json={**body, "model": "slow"})) for _ in range(LOADING + 3)]
        try:
            while models.asked < LOADING:
                await asyncio.sleep(0.01)
            async with asyncio.timeout(1):
                other = await client.post(path, json={**body, "model": "red"})
            assert other.status_code == 200 and models.asked == LOADING
        finally:
            models.gate.set()
            answers = await asyncio.gather(*slow)
        return [answer.status_code for answer in answers]


@pytest.fixture
def found(tiny_base: Path, targets: dict[str, str]) -> Iterator[tuple[ServedModels, list[str]]]:
    """A server's models with one that is made, and the names that were looked for."""
    names: list[str] = []
    folders = [Path(targets["red"]), Path(targets["blue"])]

    def find(name: str, owner: str) -> Made:
        """Made anew each time."""
        names.append(name)
        folder = folders[(len(names) - 1) % 2]
        return Made(name, owner, 1, "plain", folder, weights_sha256(folder))

    yield ServedModels.load({"plain": str(tiny_base)}, precision="float32", find=find), names


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", {**TEXT, "echo": True})])
def test_the_model_that_answers_is_the_one_that_is_named(
    found: tuple[ServedModels, list[str]], url: str, path: str, body: dict[str, Any]
) -> None:
    models, names = found
    with running(create_app(models)) as another:
        for name in ("red", "blue"):
            answer = httpx.post(f"{another}/{path}", json={**body, "model": "made"}, timeout=WAIT_S).json()
            expected = httpx.post(f"{url}/{path}", json={**body, "model": name}, timeout=WAIT_S).json()
            assert answer["system_fingerprint"] == expected["system_fingerprint"]
            assert answer["choices"] == expected["choices"]
    assert names == ["made", "made"], "each found once"
