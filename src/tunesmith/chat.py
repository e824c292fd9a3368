"""Example: the one data type that crosses stages, with its parser and normal form.

Not here: a single turn (turns), files and line numbers (data.load), templates and token ids (render).
`parse_row` returns every problem of a row at once and never raises on bad data.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import RowProblem, kind_of
from tunesmith.turns import Message as Message
from tunesmith.turns import order_problems, parse_tools, parse_turns, text_problem

MAX_LABEL_CHARS = 64
MAX_LABELS = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, which of its turns are trained, its weight in the loss, and what else the row held.

    A preference has `rejected`: the turns that `messages`, from its first trained turn on, were preferred to. A row
    for reinforcement ends without an answer. A plain text is one message of the role "text".
    """

    messages: tuple[Message, ...]
    weight: float = 1.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rejected: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()  # function schemas in OpenAI's shape

    @property
    def kind(self) -> str:
        """What it can teach: "chat", "text", "preference" or "rl"; the last two need a method of their own."""
        if self.rejected:
            return "preference"
        return {"assistant": "chat", "text": "text"}.get(self.messages[-1].role, "rl")

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last turn, if that is an answer: what a contender is asked."""
        return self.messages if self.kind == "rl" else self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last turn, if it is an answer: what a contender's reply is scored against. Calls alone are written as
        JSON."""
        if self.kind == "rl":
            return ""
        last = self.messages[-1]
        return last.content or _json([call.as_dict() for call in last.tool_calls])

    @property
    def id(self) -> str:
        """Content address: sha256 of the normal form, the first 16 hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Normal form, one line of JSONL; `parse_row(json.loads(...))` gives the same Example back.

        Chat in OpenAI's shape, preferences and rows for reinforcement in TRL's (`prompt`, `chosen`, `rejected`).
        """
        body = self._normal_body()
        if self.tools:
            body["tools"] = [dict(tool) for tool in self.tools]
        if self.weight != 1.0:
            body["weight"] = self.weight
        body.update(self.metadata)
        return _json(body)

    def _normal_body(self) -> dict[str, Any]:
        turns = [message.as_dict() for message in self.messages]
        if self.kind == "text":
            return {"text": self.messages[0].content}
        if self.kind == "rl":
            return {"prompt": turns}
        if self.kind == "preference":
            first = next(index for index, message in enumerate(self.messages) if message.trained)
            return {
                "prompt": turns[:first],
                "chosen": turns[first:],
                "rejected": [message.as_dict() for message in self.rejected],
            }
        for message, turn in zip(self.messages, turns, strict=True):
            if message.role == "assistant" and not message.trained:
                turn["weight"] = 0
        return {"messages": turns}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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


def shape_of(row: Mapping[str, Any]) -> str | None:
    """Which shape of those that `parse_row` reads a row has, by its keys alone."""
    if "chosen" in row and "rejected" in row:
        return "preference"
    if "messages" in row:
        return "chat"
    if isinstance(row.get("prompt"), list) and "completion" not in row:
        return "rl"
    if "prompt" in row or "completion" in row:
        return "prompt_completion"
    return "text" if "text" in row else None


def parse_row(row: object) -> tuple[Example | None, list[RowProblem]]:
    """Turn one decoded JSON value into an Example, or list everything that is wrong with it.

    Accepts chat `messages` (OpenAI's shape: assistant turns may carry `weight` 0 or 1), `prompt`/`completion` texts,
    `text`, and lists of turns as `prompt`/`chosen`/`rejected` or as `prompt` alone. Other keys are kept as metadata.
    """
    if not isinstance(row, dict):
        what = f"the line holds {kind_of(row)}, not an object."
        return None, [RowProblem("not_object", what, "Write one JSON object per line.")]
    shape = shape_of(row)
    if shape is None:
        return None, [no_turns(row)]
    keys, parse = PARSERS[shape]
    messages, rejected, problems = parse(row)
    tools: tuple[Mapping[str, Any], ...] = ()
    if shape != "text":
        keys = (*keys, "tools")
        tools, faults = parse_tools(row.get("tools"))
        problems += faults
    if not problems and any(turn.tool_calls or turn.role == "tool" for turn in (*messages, *rejected)):
        for turns in (messages, (*_untrained(messages), *rejected)) if rejected else (messages,):
            problems += order_problems(turns, tools)
    weight, fault = _row_weight(row)
    metadata = {key: value for key, value in row.items() if key not in keys and key != "weight"}
    problems += [found for found in (fault, _metadata_problem(metadata), _metadata_problem(list(tools))) if found]
    if problems:
        return None, problems
    return Example(tuple(messages), weight, metadata, tuple(rejected), tools), []


def no_turns(row: Mapping[str, Any]) -> RowProblem:
    seen = ", ".join(reprlib.repr(key) for key in list(row)[:5]) or "no keys"
    todo = "Give each row 'messages' (turns with 'role' and 'content'), or 'prompt' and 'completion'."
    return RowProblem("missing_messages", f"no 'messages' in this row (it has {seen}).", todo)


Parsed = tuple[Sequence[Message], Sequence[Message], list[RowProblem]]  # messages, rejected, what is wrong


def _parse_chat(row: dict[str, Any]) -> Parsed:
    messages, problems = parse_turns(row["messages"], "messages")
    raw = row["messages"] if isinstance(row["messages"], list) else []
    roles = [item.get("role") for item in raw if isinstance(item, dict)]
    if raw and "assistant" not in roles and not any(fault.issue == "unknown_role" for fault in problems):
        problems.append(RowProblem("missing_assistant", "no assistant turn.", "Add the answer the model should learn."))
    return messages, (), problems or _order_problems(messages)


def _parse_rl(row: dict[str, Any]) -> Parsed:
    messages, problems = parse_turns(row["prompt"], "prompt", trained=False)
    return messages, (), problems or _order_problems(messages, last=("user", "tool"))


def _parse_preference(row: dict[str, Any]) -> Parsed:
    """`prompt`, `chosen` and `rejected` as lists of turns."""
    prompt, problems = parse_turns(row.get("prompt", []), "prompt", trained=False)
    problems = problems or _order_problems(prompt, last=("user", "tool"))
    answers = []
    for key in ("chosen", "rejected"):
        turns, faults = parse_turns(row[key], key)
        problems += faults
        if turns and (turns[0].role != "assistant" or not all(turn.trained for turn in turns if _is_answer(turn))):
            todo = "Start it with the assistant's answer, and leave 'weight' out."
            problems.append(RowProblem("bad_order", f"'{key}' is no answer that is compared as a whole.", todo))
        elif not problems:
            problems += _order_problems([*prompt, *turns])
        answers.append(turns)
    chosen, rejected = answers
    if not problems and chosen == rejected:
        what = "the same answer is chosen and rejected."
        problems.append(RowProblem("conflicting_label", what, "Take the row out: it says nothing."))
    return [*prompt, *chosen], rejected, problems


def _parse_completion(row: dict[str, Any]) -> Parsed:
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
        if key in row and (fault := text_problem(row[key], f"'{key}'", must_fill=True)):
            problems.append(fault)
    if problems:
        return (), (), problems
    return (Message("user", row["prompt"]), Message("assistant", row["completion"], trained=True)), (), []


def _parse_text(row: dict[str, Any]) -> Parsed:
    if fault := text_problem(row["text"], "'text'", must_fill=True):
        return (), (), [fault]
    return (Message("text", row["text"], trained=True),), (), []


PARSERS: Mapping[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Parsed]]] = {
    "chat": (("messages",), _parse_chat),
    "prompt_completion": (("prompt", "completion"), _parse_completion),
    "preference": (("prompt", "chosen", "rejected"), _parse_preference),
    "rl": (("prompt",), _parse_rl),
    "text": (("text",), _parse_text),
}


def _is_answer(message: Message) -> bool:
    return message.role == "assistant"


def _untrained(messages: Sequence[Message]) -> Sequence[Message]:
    """The turns before the first trained one: the prompt of a preference."""
    first = next((index for index, message in enumerate(messages) if message.trained), len(messages))
    return messages[:first]


def _order_problems(messages: Sequence[Message], *, last: Sequence[str] = ("assistant",)) -> list[RowProblem]:
    """`last` are the roles that may end the conversation."""
    roles = [message.role for message in messages]
    todo = "Start with an optional system turn, then user and assistant by turns, and end with the assistant."
    if last[0] != "assistant":
        todo = "Start with an optional system turn, then user and assistant by turns, and end with the user."
    if roles[-1] not in last:
        return [RowProblem("bad_order", f"the last turn is from the {roles[-1]}, not from the {last[0]}.", todo)]
    if roles[0] == "assistant":
        return [RowProblem("bad_order", "the first turn is the assistant's: there is nothing to answer.", todo)]
    if any(role in ("system", "developer") for role in roles[1:]):
        return [RowProblem("bad_order", "a system turn stands after the first turn.", todo)]
    if last[0] == "assistant" and not any(message.trained for message in messages):
        what = "every assistant turn has weight 0: nothing would be trained."
        return [RowProblem("missing_assistant", what, "Give one weight 1.")]
    return []


def _metadata_problem(metadata: object) -> RowProblem | None:
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


def _row_weight(row: dict[str, Any]) -> tuple[float, RowProblem | None]:
    weight = 1.0 if row.get("weight") is None else row["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
        return 1.0, RowProblem("bad_order", f"'weight' of the row is {reprlib.repr(weight)}.", "Use a number above 0.")
    return float(weight), None
