"""Two engines on the same base compared: how fast each is, alone and together, and whether they answer alike.

Not here: what is made of it (cli.engine_choice). Token counts are held equal: no reply may end before its limit.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.chat import Message
from tunesmith.errors import ServeError
from tunesmith.sampling import Sampling, Token
from tunesmith.serve.engines.engine import Engine
from tunesmith.serve.reply import Ask, Choice, Item, Writer
from tunesmith.serve.scheduler import Job

QUESTIONS = ("Where is my card?", "Name three colours and say why you like each of them.", "What is 12 times 7?")
TOKENS = 24  # of a reply
TOGETHER = 8
WAIT_S = 300.0
TOLERANCE_NATS = 5e-3  # of a log-probability; where the two best tokens are nearer, either may come next


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second: of one reply, and of TOGETHER at once."""

    alone: float
    together: float

    def __str__(self) -> str:
        return f"{self.alone:.0f} tokens/s alone, {self.together:.0f} for {TOGETHER} at once"


def measure(engine: Engine) -> Speed:
    """After one reply that is not counted."""
    biases = tuple((token, -100.0) for token in sorted(engine.base.renderer.stop_ids))
    ask = Ask((Message("user", QUESTIONS[0]),), max_new_tokens=TOKENS, sampling=Sampling(logit_bias=biases))
    _answers(engine, [ask])
    return Speed(*(_rate(engine, [ask] * count) for count in (1, TOGETHER)))


def difference(engine: Engine, other: Engine) -> tuple[str | None, float]:
    """The first difference between two engines' greedy replies in words, or None; and the largest between the
    log-probabilities (nats) of tokens that both chose."""
    sampling = Sampling(top_logprobs=2)
    asks = [Ask((Message("user", text),), max_new_tokens=TOKENS, sampling=sampling) for text in QUESTIONS]
    largest = 0.0
    for ask, ours, theirs in zip(asks, _answers(engine, asks), _answers(other, asks), strict=True):
        same = len(os.path.commonprefix([_ids(ours), _ids(theirs)]))
        apart = [abs((a.logprob or 0.0) - (b.logprob or 0.0)) for a, b in zip(ours, theirs, strict=False)][:same]
        largest = max(largest, *apart, 0.0)
        text = ask.messages[0].content
        if largest > TOLERANCE_NATS:
            return f"log-probabilities differ by {largest:.4f} nats after {text!r}", largest
        if _ids(ours) != _ids(theirs) and not _tied(ours[same : same + 1]):
            return f"token {same + 1} after {text!r} is another", largest
    return None, largest


def _tied(tokens: Sequence[Token]) -> bool:
    """Whether the two best tokens were as good as equal."""
    return bool(tokens) and len(tokens[0].top) > 1 and tokens[0].top[0][1] - tokens[0].top[1][1] <= TOLERANCE_NATS


def _ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def _rate(engine: Engine, asks: Sequence[Ask]) -> float:
    start = time.perf_counter()
    _answers(engine, asks)
    return len(asks) * TOKENS / (time.perf_counter() - start)


def _answers(engine: Engine, asks: Sequence[Ask]) -> list[tuple[Token, ...]]:
    """All asked at once. Raises what an engine gives in place of a reply."""
    arrived = [queue.SimpleQueue[Item]() for _ in asks]
    for number, (ask, items) in enumerate(zip(asks, arrived, strict=True)):
        ids = ask.prompt(engine.base)
        limit = ask.max_new_tokens or TOKENS
        writer = Writer(engine.base, ask, index=0, prompt_tokens=len(ids), limit=limit)
        engine.submit(Job(ids, [writer], items.put, None, f"probe {number}", most=limit))
    return [_last(items) for items in arrived]


def _last(items: queue.SimpleQueue[Item]) -> tuple[Token, ...]:
    while True:
        try:
            item = items.get(timeout=WAIT_S)
        except queue.Empty as error:
            raise ServeError("An engine gives no answer.", "Choose one with --engine.", status=503) from error
        if isinstance(item, Exception):
            raise item
        if isinstance(item, Choice):
            return item.tokens
