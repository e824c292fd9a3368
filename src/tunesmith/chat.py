"""Message and Example: the one data type that crosses stages, with its parser and normal form.

Not here: files and line numbers (data.load), templates and token ids (render).
`parse_row` returns every problem of a row at once and never raises on bad data.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_LABEL_CHARS = 64
MAX_LABELS = 1000


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `trained` is only ever True on assistant turns."""

    role: str
    content: str
    trained: bool = False

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, which of its assistant turns are trained, its weight in the loss, and what else the row held."""

    messages: tuple[Message, ...]
    weight: float = 1.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant turn: what a contender is asked."""
        return self.messages[: self._last_answer()]

    @property
    def answer(self) -> str:
        """The last assistant turn: what a contender's reply is scored against."""
        return self.messages[self._last_answer()].content

    @property
    def id(self) -> str:
        """Content address: sha256 of the normal form, the first 16 hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def _last_answer(self) -> int:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "assistant":
                return index
        raise ValueError("an Example has at least one assistant turn")

    def to_json(self) -> str:
        """Normal form, one line of chat JSONL; `parse_row(json.loads(...))` gives the same Example back."""
        messages = []
        for message in self.messages:
            row: dict[str, Any] = dict(message.as_dict())
            if message.role == "assistant" and not message.trained:
                row["weight"] = 0
            messages.append(row)
        body: dict[str, Any] = {"messages": messages}
        if self.weight != 1.0:
            body["weight"] = self.weight
        body.update(self.metadata)
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def label_set(examples: Sequence[Example]) -> list[str] | None:
    """The sorted distinct answers (stripped) when the task looks like classification, else None.

    It does when every answer is one line of at most 64 characters and no JSON, and there are 2 to 1,000 different ones,
    each standing for two rows or more on average.
    """
    answers = {example.answer.strip() for example in examples}
    if not 2 <= len(answers) <= min(MAX_LABELS, len(examples) // 2):
        return None
    if any(len(answer) > MAX_LABEL_CHARS or "\n" in answer or answer[:1] in "{[" for answer in answers):
        return None
    return sorted(answers)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A fault inside one row: machine name, what was seen, what to do, and the value to point at in the line."""

    issue: str
    what: str
    todo: str
    near: str | None = None  # JSON text to look for in the line, for the column


def parse_row(row: object) -> tuple[Example | None, list[RowProblem]]:
    """Turn one decoded JSON value into an Example, or list everything that is wrong with it.

    Accepts chat `messages` (OpenAI's shape: assistant turns may carry `weight` 0 or 1) and `prompt`/`completion`.
    Other keys are kept as metadata.
    """
    if not isinstance(row, dict):
        what = f"the line holds {_kind(row)}, not an object."
        return None, [RowProblem("not_object", what, "Write one JSON object per line.")]
    if "messages" in row:
        return _parse_messages(row)
    if "prompt" in row or "completion" in row:
        return _parse_completion(row)
    seen = ", ".join(reprlib.repr(key) for key in list(row)[:5]) or "no keys"
    todo = "Give each row 'messages' (turns with 'role' and 'content'), or 'prompt' and 'completion'."
    return None, [RowProblem("missing_messages", f"no 'messages' in this row (it has {seen}).", todo)]


def _parse_completion(row: dict[str, Any]) -> tuple[Example | None, list[RowProblem]]:
    problems = [
        RowProblem(
            "missing_messages" if key == "prompt" else "missing_assistant",
            f"'{key}' is missing.",
            f"Add a text '{key}'.",
        )
        for key in ("prompt", "completion")
        if key not in row
    ]
    for key in ("prompt", "completion"):
        if key in row and (fault := _text_problem(row[key], f"'{key}'", must_fill=True)):
            problems.append(fault)
    if problems:
        return None, problems
    metadata = {key: value for key, value in row.items() if key not in ("prompt", "completion", "weight")}
    weight, fault = _row_weight(row)
    if fault := fault or _metadata_problem(metadata):
        return None, [fault]
    messages = (Message("user", row["prompt"]), Message("assistant", row["completion"], trained=True))
    return Example(messages, weight, metadata), []


def _parse_messages(row: dict[str, Any]) -> tuple[Example | None, list[RowProblem]]:
    raw = row["messages"]
    if not isinstance(raw, list):
        return None, [
            RowProblem("missing_messages", f"'messages' is {_kind(raw)}, not a list.", "Make it a list of turns.")
        ]
    if not raw:
        return None, [
            RowProblem("empty_messages", "'messages' is empty.", "Add at least a user and an assistant turn.")
        ]
    problems: list[RowProblem] = []
    messages: list[Message] = []
    for number, item in enumerate(raw, start=1):
        message, faults = _parse_message(item, number)
        problems.extend(faults)
        if message:
            messages.append(message)
    roles = [item.get("role") for item in raw if isinstance(item, dict)]
    if "assistant" not in roles and not any(fault.issue == "unknown_role" for fault in problems):
        problems.append(RowProblem("missing_assistant", "no assistant turn.", "Add the answer the model should learn."))
    if not problems:
        problems.extend(_order_problems(messages))
    weight, fault = _row_weight(row)
    metadata = {key: value for key, value in row.items() if key not in ("messages", "weight")}
    problems.extend(found for found in (fault, _metadata_problem(metadata)) if found)
    if problems:
        return None, problems
    return Example(tuple(messages), weight, metadata), []


def _parse_message(item: object, number: int) -> tuple[Message | None, list[RowProblem]]:
    if not isinstance(item, dict):
        what = f"message {number} is {_kind(item)}, not an object."
        return None, [RowProblem("not_object", what, 'Write it as {"role": ..., "content": ...}.')]
    role = item.get("role")
    if role is None:
        return None, [RowProblem("unknown_role", f"message {number} has no 'role'.", f"Use one of {', '.join(ROLES)}.")]
    if role not in ROLES:
        what = f"message {number} has the unknown role {reprlib.repr(role)}."
        return None, [RowProblem("unknown_role", what, f"Use one of {', '.join(ROLES)}.", near=_near(role))]
    if item.get("tool_calls") or role == "tool":
        what = f"message {number} uses tools, which training does not read yet."
        return None, [RowProblem("bad_order", what, "Take the row out, or write the call as text.")]
    name = f"the content of message {number} ({role})"
    if fault := _text_problem(item.get("content"), name, must_fill=role in ("user", "assistant")):
        return None, [fault]
    weight = item.get("weight", 1)
    if weight not in (0, 1):
        what = f"message {number} has the weight {reprlib.repr(weight)}."
        return None, [RowProblem("bad_order", what, "Use 0 (not trained) or 1.")]
    return Message(role, item["content"], trained=role == "assistant" and weight == 1), []


def _order_problems(messages: list[Message]) -> list[RowProblem]:
    roles = [message.role for message in messages]
    todo = "Start with an optional system turn, then user and assistant by turns, and end with the assistant."
    if roles[-1] != "assistant":
        return [RowProblem("bad_order", f"the last turn is from the {roles[-1]}, not from the assistant.", todo)]
    if roles[0] == "assistant":
        return [RowProblem("bad_order", "the first turn is the assistant's: there is nothing to answer.", todo)]
    if any(role in ("system", "developer") for role in roles[1:]):
        return [RowProblem("bad_order", "a system turn stands after the first turn.", todo)]
    if not any(message.trained for message in messages):
        what = "every assistant turn has weight 0: nothing would be trained."
        return [RowProblem("missing_assistant", what, "Give one weight 1.")]
    return []


def _text_problem(value: object, name: str, *, must_fill: bool) -> RowProblem | None:
    if value is None:
        return RowProblem("null_content", f"{name} is null or missing.", "Give it a text.", near="null")
    if not isinstance(value, str):
        return RowProblem(
            "null_content", f"{name} is {_kind(value)}, not a text.", "Give it a text.", near=_near(value)
        )
    if must_fill and not value.strip():
        return RowProblem(
            "empty_content", f"{name} is empty.", "Write the text, or take the row out.", near=_near(value)
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{name} holds half of a character (a lone surrogate)."
        return RowProblem("invalid_utf8", what, "Write the whole character.", near=f"\\u{ord(value[error.start]):04x}")
    return None


def _metadata_problem(metadata: dict[str, Any]) -> RowProblem | None:
    """Other keys must survive `to_json`: whole characters, finite numbers, not too deep."""
    if not metadata:
        return None
    try:
        json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        what = "a key or value beside the messages holds half of a character (a lone surrogate)."
        near = f"\\u{ord(error.object[error.start]):04x}"
        return RowProblem("invalid_utf8", what, "Write the whole character.", near=near)
    except (ValueError, TypeError, RecursionError) as error:
        return RowProblem("broken_json", f"a value beside the messages is no JSON ({error}).", "Take it out.")
    return None


def _kind(value: object) -> str:
    """What a JSON value is, in words for a message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _near(value: object) -> str:
    """JSON text by which the value can be found in its line; of a list or object only the bracket."""
    if isinstance(value, list | dict):
        return "[" if isinstance(value, list) else "{"
    return json.dumps(value, ensure_ascii=False)


def _row_weight(row: dict[str, Any]) -> tuple[float, RowProblem | None]:
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
        return 1.0, RowProblem("bad_order", f"'weight' of the row is {reprlib.repr(weight)}.", "Use a number above 0.")
    return float(weight), None
