"""Contender: anything that answers. Everything that evaluates, compares, serves or monitors speaks to this.

Not here: the local form, which needs torch (generate.LocalContender). The remote form is `UrlContender`.
A contender never trims a prompt: one that does not fit is an error naming both lengths.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx

from tunesmith.chat import Message
from tunesmith.errors import InputError, ModelError

Progress = Callable[[int], None]


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


class Contender(Protocol):
    """Messages in, replies out, in the same order. `progress` is called with the number of rows just finished."""

    name: str

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]: ...


class UrlContender:
    """Any OpenAI-compatible server: `url:http://host:port/v1#model`, key from TUNESMITH_API_KEY."""

    def __init__(self, url: str, model: str, *, timeout_s: float = 120.0) -> None:
        self.name = f"url:{url}#{model}"
        self.url = url.rstrip("/")
        self.model = model
        self.timeout_s = timeout_s

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
        try:
            response = client.post(f"{self.url}/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise ModelError(
                f"{self.name} did not answer: {error}.", "Is the server running at that address?"
            ) from error
        if response.status_code != 200:
            raise ModelError(f"{self.name} answered {response.status_code}: {response.text[:300]}")
        data = response.json()
        choice, usage = data["choices"][0], data.get("usage") or {}
        return Reply(
            text=choice["message"]["content"] or "",
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
            latency_s=time.perf_counter() - start,
            finish_reason=choice.get("finish_reason") or "stop",
        )


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
