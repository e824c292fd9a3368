"""One reply, token by token: the prompt's ids, the length check, stop strings, and an end when nobody listens any more.

Not here: which model answers (serve.models), HTTP. The ids are those of evaluation (render.Renderer.prompt) and so is
the decoding (generate.decode_one); a prompt is never trimmed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import ServeError
from tunesmith.generate import GREEDY, Sampling, decode_one
from tunesmith.model import Base

DEFAULT_MAX_NEW_TOKENS = 1024  # of a request that names no limit: a small model that repeats itself must come to an end


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request wants. `max_new_tokens` None: what fits the context, at most DEFAULT_MAX_NEW_TOKENS."""

    messages: tuple[Message, ...]
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


def stream_reply(base: Base, model: Any, *, ask: Ask, cancelled: threading.Event) -> Iterator[str | Reply]:
    """Pieces of text as they are made, then the Reply, whose text is all of them; no Reply once `cancelled` is set.

    Text that may be the beginning of a stop string is held back. Raises ServeError when the prompt does not fit, and
    RenderError when the template refuses the turns.
    """
    start = time.perf_counter()
    renderer = base.renderer
    ids = renderer.prompt(ask.messages)
    limit = _reply_limit(base, ids, asked=ask.max_new_tokens)
    made: list[int] = []
    sent = text = ""
    finish = "length"
    for token in decode_one(model, ids, max_new_tokens=limit, sampling=ask.sampling):
        if cancelled.is_set():
            return
        if token in renderer.stop_ids:
            finish = "stop"
            break
        made.append(token)
        text = renderer.decode(made)
        if text.endswith("\ufffd"):  # half a character so far
            continue
        found = [position for stop in ask.stop if (position := text.find(stop)) >= 0]
        if found:
            text, finish = text[: min(found)], "stop"
            break
        if (safe := len(text) - _held(text, ask.stop)) > len(sent):
            yield text[len(sent) : safe]
            sent = text[:safe]
    if len(text) > len(sent):
        yield text[len(sent) :]
    yield Reply(text, len(ids), len(made), time.perf_counter() - start, finish)


def _reply_limit(base: Base, ids: Sequence[int], *, asked: int | None) -> int:
    context = base.facts.max_positions
    left = context - len(ids)
    if left < (asked or 1):
        wanted = "leaves no room for a reply" if asked is None else f"and a reply of up to {asked} do not fit"
        raise ServeError(
            f"A prompt of {len(ids)} tokens {wanted} in the context of {context} tokens of {base.name}.",
            "Prompts are never trimmed: shorten the messages, or lower max_tokens.",
            status=400,
            code="context_length_exceeded",
        )
    return asked or min(left, DEFAULT_MAX_NEW_TOKENS)


def _held(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may turn out to be the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
