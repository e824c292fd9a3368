"""The interface of engines: one base, ready to answer, with adapters that are put on and taken off by name of folder.

Not here: the engines (pytorch, llamacpp, url), which model a name means (serve.models), the choice between engines
(cli.engine_choice). Whichever answers is given our token ids; what it cannot do is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from tunesmith.facts import read_facts, weights_sha256
from tunesmith.model import Base, find_base, load_renderer
from tunesmith.sampling import Token
from tunesmith.serve.reply import Ask
from tunesmith.serve.scheduler import Job
from tunesmith.serve.wire.errors import RequestError

Say = Callable[[str], None]

# What a request may ask beside a greedy or sampled text, by the name of its field on the wire.
ASKED: dict[str, Callable[[Ask], object]] = {
    "response_format": lambda ask: ask.constrain,
    "logprobs": lambda ask: ask.sampling.top_logprobs is not None,
    "logit_bias": lambda ask: ask.sampling.logit_bias,
    "presence_penalty": lambda ask: ask.sampling.presence_penalty,
    "frequency_penalty": lambda ask: ask.sampling.frequency_penalty,
    "seed": lambda ask: ask.sampling.seed is not None and ask.sampling.temperature > 0,
}


class Worn(Protocol):
    """An adapter on an engine."""

    @property
    def sha256(self) -> str: ...

    @property
    def num_bytes(self) -> int: ...


class Engine(Protocol):
    """`name` is for people; `precision` is what the base's weights are held in, "auto" where only another process
    knows."""

    base: Base
    name: str

    @property
    def precision(self) -> str: ...

    @property
    def is_alive(self) -> bool:
        """Whether a token was made just now: no need to try."""
        ...

    def put_on(self, folder: Path, *, name: str, say: Say) -> Any:
        """Load an adapter for the model of this name; what is returned goes with its jobs. Raises ModelError for one
        that does not belong on this base, InputError where this engine cannot load any."""
        ...

    def take_off(self, adapter: Any) -> None:
        """Requests that use it go on to their end."""
        ...

    def check(self, ask: Ask) -> None:
        """Raises RequestError (400) naming the first field that this engine cannot do."""
        ...

    def submit(self, job: Job) -> None:
        """Queue a request. Raises Busy when too many wait."""
        ...

    @property
    def load(self) -> tuple[int, int]:
        """How many replies are being made, and how many requests wait."""
        ...

    def tell(self, ids: Sequence[int], adapter: Any, *, top: int) -> list[Token]:
        """How likely the model finds each token of a text, and the `top` best in its place. Raises RequestError (400)
        where the engine does not tell."""
        ...

    def stop(self) -> None:
        """End once nothing runs or waits."""
        ...


class OpenEngine(Protocol):
    """Makes the engine of a base: its name or folder, in 4 bits or not."""

    def __call__(self, base: str, *, quantized: bool, precision: str, say: Say) -> Engine: ...


def refuse_what_is_beyond(ask: Ask, *, cannot: Collection[str], engine: str) -> None:
    """Raises RequestError (400) for the first field of `cannot` that is asked."""
    for name in cannot:
        if ASKED[name](ask):
            raise RequestError(
                f"'{name}' is beyond the engine {engine} of this model; leave it out, or serve it with --engine torch.",
                param=name,
                code="unsupported_parameter",
            )


def without_weights(name: str, *, say: Say) -> Base:
    """A base whose weights are held elsewhere: what is known of it, and its renderer. Raises as `load_base`."""
    path = find_base(name, say)
    return Base(name, read_facts(path), weights_sha256(path), None, load_renderer(str(path)), "held elsewhere")
