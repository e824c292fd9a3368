"""HTTP to a server that decodes for us: bodies as JSON, streams as events, and every failure as one designed error.

Not here: what is asked (vllm, ollama, plain_openai). A failure of that server is no fault of the request: 502, 503 or
504, and 429 where that server is busy. The key is TUNESMITH_ENGINE_KEY, where it is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tunesmith.errors import ServeError
from tunesmith.serve.scheduler import Busy

KEY_VARIABLE = "TUNESMITH_ENGINE_KEY"
READ_S = 600.0  # for the next token, which may wait behind other requests
CONNECT_S = 10.0
SHOWN = 200  # characters of what it says


class RemoteServer:
    """`root` is its address without /v1."""

    def __init__(self, root: str, *, read_s: float = READ_S) -> None:
        self.root = root.rstrip("/").removesuffix("/v1")
        key = os.environ.get(KEY_VARIABLE)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(headers=headers, timeout=httpx.Timeout(read_s, connect=CONNECT_S))

    def find(self, path: str) -> Any | None:
        """What a GET gives; None where there is nothing of the kind."""
        with self._telling():
            response = self.http.get(f"{self.root}{path}")
        if response.status_code != 200:
            return None
        return self._json(response)

    def ask(self, path: str, body: Any, *, method: str = "POST") -> Any:
        """The JSON answered, or {} for another body. Raises ServeError, with the status as `answered`."""
        with self._telling():
            response = self.http.request(method, f"{self.root}{path}", json=body)
        self._check(response)
        return self._json(response) or {}

    def send(self, path: str, file: Path) -> None:
        with self._telling(), file.open("rb") as content:
            self._check(self.http.post(f"{self.root}{path}", content=content))

    def has(self, path: str) -> bool:
        with self._telling():
            return self.http.head(f"{self.root}{path}").status_code == 200

    def lines(self, path: str, body: Any) -> Generator[str, None, None]:
        """Those of a streamed answer, as they come."""
        with self._telling(), self.http.stream("POST", f"{self.root}{path}", json=body) as response:
            if response.status_code != 200:
                response.read()
            self._check(response)
            yield from response.iter_lines()

    def events(self, path: str, body: Any) -> Generator[dict[str, Any], None, None]:
        """Server-sent events up to [DONE], without which the stream has broken off."""
        for line in self.lines(path, body):
            if line.strip() == "data: [DONE]":
                return
            if line.startswith("data:"):
                yield self.event(line.removeprefix("data:"))
        raise self.failed("its stream broke off")

    def event(self, text: str) -> dict[str, Any]:
        """An object of a stream. Raises ServeError for what is none, and for one that tells of an error."""
        try:
            event = json.loads(text)
        except ValueError as error:
            raise self.failed(f"it sent {text[:SHOWN]!r}") from error
        if not isinstance(event, dict) or event.get("error"):
            raise self.failed(f"it sent {text[:SHOWN]!r}")
        return event

    def failed(self, why: str, *, status: int = 502) -> ServeError:
        return ServeError(
            f"The engine at {self.root} failed: {why}.",
            "Look at that server's log.",
            status=status,
            code="engine_failed",
        )

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 429:
            told = response.headers.get("retry-after", "")
            raise Busy("The engine is busy.", retry_after_s=int(told) if told.isdecimal() else 1)
        if not response.is_success:
            raise Answered(self.failed(f"it answers {response.status_code}: {response.text[:SHOWN]}"), response)

    @staticmethod
    def _json(response: httpx.Response) -> Any | None:
        try:
            return response.json()
        except ValueError:
            return None

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise self.failed("it did not answer in time", status=504) from error
        except httpx.HTTPError as error:
            raise self.failed(str(error) or type(error).__name__, status=503) from error


class Answered(ServeError):
    """The other server refused; `answered` is its status."""

    def __init__(self, error: ServeError, response: httpx.Response) -> None:
        super().__init__(error.message, error.todo, status=error.status, code=error.code)
        self.answered = response.status_code
        self.text = response.text
