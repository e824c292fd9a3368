"""Graders that ask a served model: a score in a range, or one of some labels, read strictly from its reply.

Not here: which model a name is (serve.models), the other graders (graders.grade). A reply that is no score, or no
label, is a fault of that row and never a guess.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import cast

from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import ServeError
from tunesmith.sampling import Sampling
from tunesmith.serve.models import ServedModels
from tunesmith.serve.reply import Ask
from tunesmith.serve.wire.graders import JudgeSampling, LabelModel, ScoreModel

COLDEST = 1e-4  # below this temperature the division overflows; the reply is the greedy one
MAX_SCORE_TOKENS = 64
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


class UnreadableReply(Exception):
    """The judging model said something else; `cut`: because its reply was cut off."""

    def __init__(self, message: str, *, cut: bool) -> None:
        super().__init__(message)
        self.cut = cut


def sampling_of(temperature: float | None, *, top_p: float | None, seed: int | None) -> Sampling:
    """None is greedy, as everywhere here."""
    greedy = temperature is None or temperature < COLDEST or top_p == 0
    return Sampling(0.0 if greedy else temperature or 0.0, 1.0 if top_p is None else top_p, seed)


def ask_model(models: ServedModels, name: str, *, owner: str, ask: Ask, stopping: threading.Event) -> Reply:
    """One whole reply of a served model. Raises what ServedModels raises, and ServeError once the server stops."""
    with closing(cast("Generator[str | Reply]", models.stream(name, ask, owner=owner))) as items:
        for item in items:
            if isinstance(item, Reply):
                return item
            if stopping.is_set():
                break
    raise ServeError("The server is stopping.", status=503)


def score_question(grader: ScoreModel, messages: Sequence[Message]) -> Ask:
    low, high = grader.span
    return _ask(grader.sampling_params, messages, f"Reply with one number from {low:g} to {high:g} and nothing else.")


def label_question(grader: LabelModel, messages: Sequence[Message]) -> Ask:
    labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in grader.labels)
    return _ask(grader.sampling_params, messages, f"Reply with one of these labels and nothing else: {labels}.")


def read_score(grader: ScoreModel, reply: Reply) -> float:
    """A number, or an object with one under "result" or "score". Raises UnreadableReply, also outside the range."""
    text = reply.text.strip()
    number = next((value for value in (_plain(text), *_of_object(text)) if value is not None), None)
    low, high = grader.span
    if number is None or not low <= number <= high:
        raise UnreadableReply(f"The reply of {grader.model} is no number from {low:g} to {high:g}.", cut=_cut(reply))
    return number


def read_label(grader: LabelModel, reply: Reply) -> str:
    """The label that the reply is, quotes, a full stop and case aside. Raises UnreadableReply."""
    text = reply.text.strip()
    if text in grader.labels:
        return text
    said = text.strip("\"'` \n.").casefold()
    found = [label for label in grader.labels if label.casefold() == said]
    if len(found) != 1:
        raise UnreadableReply(f"The reply of {grader.model} is none of the labels.", cut=_cut(reply))
    return found[0]


def _ask(sampling: JudgeSampling | None, messages: Sequence[Message], order: str) -> Ask:
    """The order stands at the end of the last user turn, where a template that knows no system turn has it too."""
    asked = sampling or JudgeSampling()
    turns = list(messages)
    if turns[-1].role == "user":
        turns[-1] = Message("user", f"{turns[-1].content}\n\n{order}")
    else:
        turns.append(Message("user", order))
    return Ask(
        tuple(turns),
        max_new_tokens=asked.max_completions_tokens or MAX_SCORE_TOKENS,
        sampling=sampling_of(asked.temperature, top_p=asked.top_p, seed=asked.seed),
    )


def _plain(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _of_object(text: str) -> Iterator[float | None]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        found = [value[name] for name in ("result", "score") if name in value]
        yield from (_plain(str(one)) for one in found if not isinstance(one, bool))


def _cut(reply: Reply) -> bool:
    return reply.finish_reason == "length"
