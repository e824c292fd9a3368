"""Contender: anything that answers. Everything that evaluates, compares, serves or monitors speaks to this.

Not here: the local form, which needs torch (generate.LocalContender). The remote form is `UrlContender`.
A contender never trims a prompt: one that does not fit is an error naming both lengths.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from tunesmith.chat import Message
from tunesmith.errors import InputError, ModelError

Progress = Callable[[int], None]

BUSY = (408, 409, 429, 500, 502, 503, 504, 529)  # statuses of a server that may answer a moment later
MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `latency_s` is the time this row took; in a batch, the batch's time divided by its rows."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    finish_reason: str  # "stop": the model ended its turn; "length": the limit did

    @property
    def stopped(self) -> bool:
        return self.finish_reason == "stop"


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that may answer a question, where it stands, and how well it fits (higher is better)."""

    text: str
    source: str
    score: float


class Contender(Protocol):
    """Messages in, replies out, in the same order. `progress` is called with the number of rows just finished."""

    name: str

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]: ...


class UrlContender:
    """Any OpenAI-compatible server: `url:http://host:port/v1#model`, key from TUNESMITH_API_KEY.

    A server that is busy or does not answer is asked again `retries` times, after `wait_s`, then twice that, and so on,
    or after what its Retry-After says.
    """

    def __init__(
        self, url: str, model: str, *, timeout_s: float = 120.0, retries: int = 0, wait_s: float = 1.0
    ) -> None:
        self.name = f"url:{url}#{model}"
        self.url = url.rstrip("/")
        self.model = model
        self.timeout_s = timeout_s
        self.retries = retries
        self.wait_s = wait_s

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        key = os.environ.get("TUNESMITH_API_KEY", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        replies = []
        with httpx.Client(headers=headers, timeout=self.timeout_s) as client:
            for messages in prompts:
                replies.append(self._ask(client, messages, max_new_tokens=max_new_tokens))
                if progress:
                    progress(1)
        return replies

    def _ask(self, client: httpx.Client, messages: Sequence[Message], *, max_new_tokens: int) -> Reply:
        body = {
            "model": self.model,
            "messages": [message.as_dict() for message in messages],
            "max_tokens": max_new_tokens,
            "temperature": 0,
        }
        start = time.perf_counter()
        response = self._post(client, body)
        try:
            data = response.json()
            choice, usage = data["choices"][0], data.get("usage") or {}
            return Reply(
                text=choice["message"]["content"] or "",
                prompt_tokens=usage.get("prompt_tokens", 0),
                completion_tokens=usage.get("completion_tokens", 0),
                latency_s=time.perf_counter() - start,
                finish_reason=choice.get("finish_reason") or "stop",
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            what = f"{self.name} answered, but not as an OpenAI-compatible server does: {response.text[:300]!r}."
            raise ModelError(what, "Check the address; it usually ends in /v1.") from error

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        """The first answer with status 200. Raises ModelError for another, or none, when the retries are used up."""
        for attempt in itertools.count():
            wait_s = self.wait_s * 2**attempt
            try:
                response = client.post(f"{self.url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                if attempt >= self.retries:
                    what = f"{self.name} did not answer: {error or type(error).__name__}."
                    raise ModelError(what, "Is the server running at that address?") from error
            else:
                if response.status_code == 200:
                    return response
                if attempt >= self.retries or response.status_code not in BUSY:
                    raise ModelError(f"{self.name} answered {response.status_code}: {response.text[:300]}")
                told = response.headers.get("retry-after", "")
                wait_s = float(told) if told.isdecimal() else wait_s
            time.sleep(min(wait_s, MAX_WAIT_S))
        raise AssertionError("the last attempt returns or raises")


class PromptedContender:
    """Another contender with its system prompt replaced: the same rows, asked in other words."""

    def __init__(self, inner: Contender, system: str, *, name: str) -> None:
        self.name = name
        self.inner = inner
        self.system = Message("system", system)

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        asked = [
            (self.system, *(message for message in messages if message.role not in ("system", "developer")))
            for messages in prompts
        ]
        return self.inner.answer(asked, max_new_tokens=max_new_tokens, progress=progress)


def parse_url_spec(spec: str) -> UrlContender:
    """`url:http://host:port/v1#model` -> UrlContender. Raises InputError when the model part is missing."""
    url, _, model = spec.removeprefix("url:").partition("#")
    if not model or not url.startswith(("http://", "https://")):
        raise InputError(f"The contender {spec!r} cannot be read.", "Write it as url:http://host:port/v1#model.")
    return UrlContender(url, model)
