"""The form of a task, learned from its rows: labels, JSON objects with certain fields, or free text; and who breaks it.

Not here: making rows (make), judging rows people wrote (check).
Called by data.drafts.make for every draft, and by data.advising.advice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.chat import Example, Message, label_set
from tunesmith.data.checks.wording import normal_text, request_text
from tunesmith.errors import InputError

JSON_SHARE = 0.9  # of the answers must be JSON objects for the task to be one
ALWAYS = 0.95  # a field that stands in so many answers belongs in every one
NEAR_COPY = 0.7  # of common shingles, as in the check for near duplicates
SHINGLE = 5
TURNS = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Form:
    """`fields`: the JSON types each field has been seen with; `required`: those of every answer."""

    kind: Literal["label", "json", "text"]
    system: tuple[Message, ...]  # what most rows begin with before the first user turn
    input_chars: tuple[int, int]  # shortest and longest
    answer_chars: tuple[int, int]
    labels: tuple[str, ...] = ()
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict)
    required: frozenset[str] = frozenset()

    def fault(self, text: str, answer: str) -> str | None:
        """Why a pair of input and answer is not of this form, in one or two words; None when it is."""
        if not text.strip() or not answer.strip():
            return "empty"
        if self.kind == "label":
            if answer not in self.labels:
                return "unknown label"
        elif self.kind == "json" and (why := self._json_fault(answer)):
            return why
        elif not self.answer_chars[0] <= len(answer) <= self.answer_chars[1]:
            return "answer too short" if len(answer) < self.answer_chars[0] else "answer too long"
        if not self.input_chars[0] <= len(text) <= self.input_chars[1]:
            return "input too short" if len(text) < self.input_chars[0] else "input too long"
        return None

    def _json_fault(self, answer: str) -> str | None:
        value = json_object(answer)
        if value is None:
            return "no JSON object"
        if value.keys() - self.fields.keys() or self.required - value.keys():
            return "other fields"
        if any(_type(item) not in self.fields[name] for name, item in value.items()):
            return "other types"
        return None


class Novelty:
    """Tells near copies: texts that share NEAR_COPY of their 5-letter shingles with one seen before."""

    def __init__(self) -> None:
        self._texts_by_shingle: dict[str, list[int]] = {}
        self._sizes: list[int] = []

    def add(self, text: str) -> None:
        shingles = _shingles(text)
        for shingle in shingles:
            self._texts_by_shingle.setdefault(shingle, []).append(len(self._sizes))
        self._sizes.append(len(shingles))

    def nearest(self, text: str) -> int | None:
        """Which of the added texts it nearly copies, in the order of `add`."""
        shingles = _shingles(text)
        shared = Counter(seen for shingle in shingles for seen in self._texts_by_shingle.get(shingle, ()))
        if not shared:
            return None
        likeness = {seen: count / (len(shingles) + self._sizes[seen] - count) for seen, count in shared.items()}
        best = max(likeness, key=lambda seen: (likeness[seen], -seen))
        return best if likeness[best] >= NEAR_COPY else None


def single_turns(examples: Sequence[Example]) -> list[int]:
    """The rows that are one question and its answer, by index: what can be imitated."""
    return [
        index
        for index, one in enumerate(examples)
        if one.kind == "chat" and not one.tools and [m.role for m in one.messages if m.role in TURNS] == list(TURNS)
    ]


def learn_form(examples: Sequence[Example]) -> Form:
    """The form of rows that are one question and its answer each. Raises InputError for no row."""
    if not examples:
        raise InputError("There is no row with one question and one answer to learn from.", "Give such rows.")
    answers = [example.answer for example in examples]
    starts = Counter(tuple(turn for turn in one.prompt if turn.role in ("system", "developer")) for one in examples)
    system = starts.most_common(1)[0][0]
    sizes = _band([len(request_text(one)) for one in examples]), _band([len(answer) for answer in answers])
    labels = label_set(examples)
    if labels:
        return Form("label", system, *sizes, labels=tuple(labels))
    objects = [value for answer in answers if (value := json_object(answer)) is not None]
    if len(objects) < JSON_SHARE * len(answers):
        return Form("text", system, *sizes)
    counts = Counter(name for value in objects for name in value)
    types = {name: frozenset(_type(value[name]) for value in objects if name in value) for name in counts}
    required = frozenset(name for name, count in counts.items() if count >= ALWAYS * len(objects))
    return Form("json", system, *sizes, fields=types, required=required)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object a text is, None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _band(sizes: list[int]) -> tuple[int, int]:
    """From half the 1st to twice the 99th percentile: wide enough for what the next honest row may be."""
    ordered = sorted(sizes)
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    return low // 2, 2 * high + 20


def _type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _shingles(text: str) -> set[str]:
    padded = f" {normal_text(text)} ".ljust(SHINGLE)
    return {padded[start : start + SHINGLE] for start in range(len(padded) - SHINGLE + 1)}
