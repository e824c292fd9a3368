"""A server as contender: any that speaks OpenAI's chat completions, asked side by side, not too fast, and again.

Not here: the line that names one (specs), keeping replies (evaluate.cache). Called by generate and by commands.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from tunesmith.chat import Message
from tunesmith.contender import Done, Progress, Reply, collect
from tunesmith.errors import InputError, ModelError

BUSY = (408, 409, 429, 500, 502, 503, 504, 529)  # statuses of a server that may answer a moment later
MAX_WAIT_S = 60.0
KEY_ENV = "TUNESMITH_API_KEY"
PRICED_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How a server is asked, and what it charges. Prices are for a million tokens, in any one currency."""

    key_env: str = ""  # the environment variable that holds the key; TUNESMITH_API_KEY, where set, if unset
    concurrency: int = 1  # requests under way at the same time
    rpm: float = 0.0  # requests a minute; 0: no limit
    timeout_s: float = 120.0
    retries: int = 5
    wait_s: float = 1.0  # before the first retry; then twice that, and so on
    prompt_price: float | None = None
    completion_price: float | None = None
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        lowest = {"concurrency": 1, "rpm": 0, "retries": 0, "wait_s": 0, "prompt_price": 0, "completion_price": 0}
        for name, low in (lowest | {"temperature": 0}).items():
            value = getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise InputError(f"The option {name!r} of a server is {value}.", f"It is a number from {low} on.")
        if not 0 < self.timeout_s < float("inf"):
            raise InputError(f"The option 'timeout_s' of a server is {self.timeout_s}.", "Give seconds above 0.")
        if (self.prompt_price is None) != (self.completion_price is None):
            what = "Only one of 'prompt_price' and 'completion_price' is given."
            raise InputError(what, "Give both, for a million tokens each; 0 where nothing is charged.")


class UrlContender:
    """`url:http://host:port/v1#model`. A server that is busy or does not answer is asked again, after what its
    Retry-After says, or after a wait that doubles and is drawn, so that many askers do not come back at once."""

    def __init__(self, url: str, model: str, *, options: RemoteOptions | None = None) -> None:
        self.name = f"url:{url}#{model}"
        self.url = url.rstrip("/")
        self.model = model
        self.options = options or RemoteOptions()

    @property
    def concurrency(self) -> int:
        return self.options.concurrency

    @property
    def identity(self) -> str | None:
        """None when the same question may be answered otherwise: sampled, without a seed."""
        options = self.options
        if options.temperature > 0 and options.seed is None:
            return None
        return f"url {self.url} model {self.model} temperature {options.temperature} seed {options.seed}"

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """Raises InputError when the key's variable is empty, ModelError when a request fails for good."""
        return collect(self.answer_each, prompts, max_new_tokens=max_new_tokens, progress=progress)

    def answer_each(self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, done: Done) -> None:
        """As `answer`; `done` is called in this thread, in the order in which the replies come."""
        pace = _Pace(self.options.rpm)
        with (
            httpx.Client(headers=self._headers(), timeout=self.options.timeout_s) as client,
            ThreadPoolExecutor(self.options.concurrency) as pool,
        ):
            under_way = {
                pool.submit(self._ask, client, messages, max_new_tokens=max_new_tokens, pace=pace): row
                for row, messages in enumerate(prompts)
            }
            try:
                for future in as_completed(under_way):
                    done(under_way[future], future.result())
            finally:  # after an error or Ctrl-C nobody waits for the others
                pace.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _headers(self) -> dict[str, str]:
        named = self.options.key_env
        key = os.environ.get(named or KEY_ENV, "")
        if named and not key:
            raise InputError(f"{self.name} takes its key from {named}, which is not set.", f"export {named}=...")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _ask(self, client: httpx.Client, messages: Sequence[Message], *, max_new_tokens: int, pace: _Pace) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message.as_dict() for message in messages],
            "max_tokens": max_new_tokens,
            "temperature": self.options.temperature,
        }
        if self.options.seed is not None:
            body["seed"] = self.options.seed
        response, latency_s = self._post(client, body, pace)
        try:
            data = response.json()
            choice, usage = data["choices"][0], data.get("usage")
            prompt_tokens, completion_tokens = ((usage or {}).get(f"{kind}_tokens", 0) for kind in _KINDS)
            return Reply(
                text=choice["message"]["content"] or "",
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                latency_s=latency_s,
                finish_reason=choice.get("finish_reason") or "stop",
                cost=self._cost(prompt_tokens, completion_tokens) if usage else None,
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            what = f"{self.name} answered, but not as an OpenAI-compatible server does: {response.text[:300]!r}."
            raise ModelError(what, "Check the address; it usually ends in /v1.") from error

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        prompt_price, completion_price = self.options.prompt_price, self.options.completion_price
        if prompt_price is None or completion_price is None:
            return None
        return (prompt_tokens * prompt_price + completion_tokens * completion_price) / PRICED_TOKENS

    def _post(self, client: httpx.Client, body: dict[str, Any], pace: _Pace) -> tuple[httpx.Response, float]:
        """The first answer with status 200, and the seconds that this request took, without those before and waits.

        Raises ModelError for another answer, or none, when the retries are used up.
        """
        for attempt in itertools.count():
            pace.wait()
            start = time.perf_counter()
            wait_s = min(MAX_WAIT_S, self.options.wait_s * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                response = client.post(f"{self.url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                if attempt >= self.options.retries:
                    what = f"{self.name} did not answer: {error or type(error).__name__}."
                    raise ModelError(what, "Is the server running at that address?") from error
            else:
                if response.status_code == 200:
                    return response, time.perf_counter() - start
                if attempt >= self.options.retries or response.status_code not in BUSY:
                    raise ModelError(f"{self.name} answered {response.status_code}: {response.text[:300]}")
                if (told_s := _retry_after_s(response)) is not None:
                    wait_s = min(told_s, MAX_WAIT_S)
                    pace.hold(wait_s)  # it speaks to all that ask it from here
            if pace.stopped.wait(wait_s):
                break
        raise ModelError(f"{self.name} was not asked again: another request failed.")


_KINDS = ("prompt", "completion")


class _Pace:
    """When the next request may start: so many a minute, at even distances, and not before the server wants."""

    def __init__(self, rpm: float) -> None:
        self.stopped = threading.Event()
        self._distance_s = 60 / rpm if rpm else 0.0
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._distance_s
        self.stopped.wait(max(0.0, start - time.monotonic()))

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3); None when the server says neither."""
    told = response.headers.get("retry-after", "").strip()
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
