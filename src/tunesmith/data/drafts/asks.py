"""What a teacher is asked, and how its reply is read: new rows, rewordings, hard cases, or an answer to an input.

Not here: asking, and judging what comes back (make). A request depends on the seeds, the seed and its number only.
Called by data.drafts.make. VERSION goes into every row made, so that rows of one wording can be found again.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.chat import Example, Message
from tunesmith.data.checks.wording import request_text
from tunesmith.data.drafts.form import Form, json_object

VERSION = "1"
How = Literal["generate", "paraphrase", "hard-negatives", "answer"]
ROWS_PER_ASK = 5
SHOWN = 4  # seeds in a request
RECENT = 5  # of the texts made last, which the teacher is told not to repeat
ROLE = "You write training examples for a language model. Reply with one JSON array and nothing else."


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `answer`: what its rows are answered with, None when the teacher says it. `group`: what its rows
    have in common, a label or the one seed they vary. `keep`: texts that must stand in every input.
    `input`: the messages that are answered, when the reply is the answer itself."""

    messages: tuple[Message, ...]
    seed_rows: tuple[int, ...]  # indices
    answer: str | None = None
    group: str | int | None = None
    keep: tuple[str, ...] = ()
    input: tuple[Message, ...] = ()

    @property
    def sha256(self) -> str:
        text = json.dumps([message.as_dict() for message in self.messages], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Pair:
    input: str
    answer: str


class Asker:
    """Makes the requests of one kind over the seeds."""

    def __init__(self, how: How, seeds: Sequence[Example], form: Form, *, seed: int) -> None:
        self.how, self.seeds, self.form, self.seed = how, seeds, form, seed
        self._rows_by_label: dict[str, list[int]] = {}
        if form.kind == "label":
            for row, example in enumerate(seeds):
                self._rows_by_label.setdefault(example.answer.strip(), []).append(row)
        self._rivals = _rivals(seeds, form.labels) if how == "hard-negatives" and form.kind == "label" else {}

    @property
    def by_row(self) -> bool:
        """Whether each request varies one seed, so that one without fruit says nothing of the next."""
        return self.how == "paraphrase" or (self.how == "hard-negatives" and self.form.kind == "json")

    def ask(self, number: int, *, label: str | None, made: Mapping[str | int | None, Sequence[str]]) -> Ask:
        """The request with this number. `made`: the inputs taken so far, by group."""
        draw = random.Random(f"{self.seed}/{number}")
        if self.by_row:
            return self._of_one_row(number, made)
        rows = self._rows_by_label[label] if label is not None else range(len(self.seeds))
        shown = tuple(draw.sample(list(rows), min(SHOWN, len(rows))))
        task = self._new_rows(label)
        lines = [f"The task: {self._task()}", "Examples:", *(self._shown(row) for row in shown), task]
        lines += _not_these(made.get(label, ()))
        return Ask(_messages(lines), shown, answer=label, group=label)

    def answer(self, number: int, asked: tuple[Message, ...]) -> Ask:
        """An input as it is, after the task and a few seeds as earlier turns: the reply is the answer."""
        draw = random.Random(f"{self.seed}/{number}")
        shown = tuple(draw.sample(range(len(self.seeds)), min(SHOWN, len(self.seeds))))
        own = tuple(turn for turn in asked if turn.role not in ("system", "developer"))
        turns = [turn for row in shown for turn in self.seeds[row].messages if turn.role in ("user", "assistant")]
        return Ask((*self.form.system, *turns, *own), shown, input=(*self.form.system, *own))

    def _of_one_row(self, number: int, made: Mapping[str | int | None, Sequence[str]]) -> Ask:
        order = random.Random(f"{self.seed}/order").sample(range(len(self.seeds)), len(self.seeds))
        row = order[number % len(order)]
        seed = self.seeds[row]
        lines = [f"The task: {self._task()}", "A row:", self._shown(row), *_not_these(made.get(row, ()))]
        if self.how == "hard-negatives":
            lines.append(
                "Write 2 inputs that look like this one but have another right output: change what decides one field. "
                'As [{"input": ..., "output": {...}}, ...].'
            )
            return Ask(_messages(lines), (row,), group=row)
        keep = _copied_values(seed)
        lines.append(
            "Write this input in 2 other ways, as other people would put it, so that the output stays right"
            + (". Keep these as they are: " + json.dumps(keep, ensure_ascii=False) if keep else "")
            + '. As ["...", "..."].'
        )
        return Ask(_messages(lines), (row,), answer=seed.answer, group=row, keep=tuple(keep))

    def _task(self) -> str:
        return " ".join(turn.content for turn in self.form.system) or "as the examples show"

    def _shown(self, row: int) -> str:
        example = self.seeds[row]
        output: Any = json_object(example.answer) if self.form.kind == "json" else example.answer
        return json.dumps({"input": request_text(example), "output": output}, ensure_ascii=False)

    def _new_rows(self, label: str | None) -> str:
        style = "in the language and style of the examples, each about something else"
        if label is None:
            return f'Write {ROWS_PER_ASK} new rows {style}. As [{{"input": ..., "output": ...}}, ...].'
        if rival := self._rivals.get(label):
            what = f"that are easily taken for {json.dumps(rival)} but whose right output is {json.dumps(label)}"
        else:
            what = f"whose output is {json.dumps(label)}"
        return f'Write {ROWS_PER_ASK} new inputs {what}, {style}. As ["...", "..."].'


def pairs(reply: str, ask: Ask, *, form: Form) -> list[Pair] | None:
    """The rows in a reply, in its order; items of another shape are left out as empty pairs; None: no JSON array."""
    if ask.input:
        return [Pair(ask.input[-1].content, reply.strip())]
    start, end = reply.find("["), reply.rfind("]")
    try:
        items = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        items = None
    return [_pair(item, ask, form) for item in items] if isinstance(items, list) else None


def _pair(item: Any, ask: Ask, form: Form) -> Pair:
    text = item.get("input") if isinstance(item, dict) else item
    answer: Any = ask.answer
    if answer is None and isinstance(item, dict):
        answer = item.get("output")
        if form.kind == "json" and isinstance(answer, dict):
            answer = json.dumps(answer, ensure_ascii=False)
    if not (isinstance(text, str) and isinstance(answer, str) and _whole(text + answer)):
        return Pair("", "")
    return Pair(text.strip(), answer.strip())


def _whole(text: str) -> bool:
    """No half of a character, which no file can hold."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _not_these(texts: Sequence[str]) -> list[str]:
    return ["Do not repeat these: " + json.dumps(list(texts[-RECENT:]), ensure_ascii=False)] if texts else []


def _messages(lines: Sequence[str]) -> tuple[Message, ...]:
    return Message("system", ROLE), Message("user", "\n".join(lines))


def _copied_values(example: Example) -> list[str]:
    """The texts of a JSON answer that stand in the input word for word."""
    asked = request_text(example)
    values = (json_object(example.answer) or {}).values()
    return [value for value in values if isinstance(value, str) and value and value in asked]


def _rivals(seeds: Sequence[Example], labels: Sequence[str]) -> Mapping[str, str]:
    """For each label the one that is asked for in the likest words: cosine of words over their spread."""
    counts = {label: Counter[str]() for label in labels}
    for example in seeds:
        counts[example.answer.strip()].update(set(request_text(example).casefold().split()))
    spread = Counter(word for words in counts.values() for word in words)
    weights = {label: {word: count / spread[word] for word, count in words.items()} for label, words in counts.items()}
    lengths = {label: sum(value * value for value in words.values()) ** 0.5 or 1.0 for label, words in weights.items()}

    def likeness(one: str, two: str) -> float:
        small, large = sorted((weights[one], weights[two]), key=len)
        return sum(value * large.get(word, 0.0) for word, value in small.items()) / (lengths[one] * lengths[two])

    return {
        label: max((other for other in labels if other != label), key=lambda o: likeness(label, o)) for label in labels
    }
