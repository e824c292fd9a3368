"""A row of another trainer's data set, by its description there, as a row of ours.

Not here: opening files (data.read.source), whether the row is good (chat.parse_row).
Called by `config.import_config`; the translators make the Shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "developer": "developer", "tool": "tool", "observation": "tool", "function_call": "function_call",
}  # fmt: skip


class RowFault(ValueError):
    """A row that the description does not fit; the text says why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which column is what; an empty name: there is none. Either `text`, or `messages` (turns) or `prompt`, and then an
    answer (`answer`, or the last turn) or a pair (`chosen`, `rejected`)."""

    messages: str = ""
    prompt: str = ""
    query: str = ""  # set under the prompt on a line of its own
    answer: str = ""
    system: str = ""
    history: str = ""  # earlier [question, answer] pairs
    tools: str = ""
    text: str = ""
    chosen: str = ""
    rejected: str = ""
    role_key: str = "role"
    content_key: str = "content"
    trained_key: str = ""  # true or false in a turn: whether it is trained
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)
    system_text: str = ""  # before rows that have no system turn of their own
    drop_system: bool = False
    only_last: bool = False  # earlier answers are not trained


@dataclass(frozen=True, slots=True)
class Source:
    """A data set of the config. `path` None: it is not on this machine; `shape` None: its rows cannot be read."""

    name: str
    path: Path | None
    shape: Shape | None
    limit: int | None = None  # only the first rows ...
    share: float | None = None  # ... or the first part of them

    def taken(self, total: int) -> int:
        """How many of its rows are asked for."""
        count = total if self.share is None else int(total * self.share)
        return count if self.limit is None else min(count, self.limit)


def converted(row: Any, shape: Shape) -> dict[str, Any]:
    """Raises RowFault when a column is missing or a turn has a role that the description does not name."""
    if not isinstance(row, dict):
        raise RowFault("this is no object")
    if shape.text:
        return {"text": _column(row, shape.text)}
    turns = _turns(row, shape)
    tools = _tools(row.get(shape.tools)) if shape.tools else []
    extra = {"tools": tools} if tools else {}
    if not shape.chosen:
        return {"messages": _weighed(turns, shape), **extra}
    pair = [_reply(_column(row, name), shape) for name in (shape.chosen, shape.rejected)]
    if not shape.messages and not shape.prompt:  # the pair holds the conversation, the last turn apart
        turns = [*turns, *_conversation(_column(row, shape.chosen), shape)[:-1]]
    return {"prompt": turns, "chosen": pair[:1], "rejected": pair[1:], **extra}


def left_out(row: Mapping[str, Any], shape: Shape) -> Iterator[str]:
    """The columns of a row that the description does not name."""
    named = {shape.messages, shape.prompt, shape.query, shape.answer, shape.system, shape.history, shape.tools}
    named |= {shape.text, shape.chosen, shape.rejected}
    return (name for name in row if name not in named)


def _turns(row: Mapping[str, Any], shape: Shape) -> list[dict[str, Any]]:
    turns = []
    if shape.messages:
        turns = _conversation(_column(row, shape.messages), shape)
    elif shape.prompt:
        turns = list(_exchanges(row, shape))
    if shape.drop_system:
        return [turn for turn in turns if turn["role"] != "system"]
    system = (row.get(shape.system) if shape.system else None) or shape.system_text
    if system and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _exchanges(row: Mapping[str, Any], shape: Shape) -> Iterator[dict[str, Any]]:
    for pair in (row.get(shape.history) if shape.history else None) or []:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise RowFault(f"'{shape.history}' is no list of pairs")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}
    parts = [_column(row, shape.prompt), row.get(shape.query) if shape.query else None]
    yield {"role": "user", "content": "\n".join(str(part) for part in parts if part)}
    if shape.answer:
        yield {"role": "assistant", "content": _column(row, shape.answer)}


def _conversation(value: Any, shape: Shape) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise RowFault("the turns are no list")
    return [_turn(item, shape) for item in value]


def _turn(item: Any, shape: Shape) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise RowFault("a turn is no object")
    name = item.get(shape.role_key)
    role = shape.roles.get(str(name))
    if role is None:
        raise RowFault(f"a turn has the role {name!r} under '{shape.role_key}', which the description does not name")
    if role == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _calls(item.get(shape.content_key))}
    turn = {"role": role, "content": item.get(shape.content_key)}
    kept = {key: item[key] for key in ("tool_calls", "tool_call_id", "name", "weight") if key in item}
    if shape.trained_key and role == "assistant" and shape.trained_key in item:
        kept["weight"] = int(bool(item[shape.trained_key]))
    return turn | kept


def _reply(value: Any, shape: Shape) -> dict[str, Any]:
    """The answer of a pair: a text, a turn, or a conversation that ends with it."""
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    return _turn(value, shape) if isinstance(value, dict) else _conversation(value, shape)[-1]


def _calls(value: Any) -> list[dict[str, Any]]:
    """LLaMA-Factory's function_call: JSON text of one call or a list of them, each with name and arguments."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
        named = [{"name": call["name"], "arguments": call.get("arguments", {})} for call in _listed(calls)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RowFault("a function call is no JSON with 'name' and 'arguments'") from error
    return [{"type": "function", "function": call} for call in named]


def _tools(value: Any) -> list[Any]:
    try:
        tools = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    except ValueError as error:
        raise RowFault("the tools are no JSON") from error
    wrap = (tool if isinstance(tool, dict) and "function" in tool else _function(tool) for tool in _listed(tools))
    return list(wrap)


def _function(tool: Any) -> dict[str, Any]:
    return {"type": "function", "function": tool}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise RowFault(f"there is no column '{name}' (it has {', '.join(list(row)[:6])})")
    return row[name]


def _weighed(turns: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if shape.only_last:
        for turn in answers[:-1]:
            turn["weight"] = 0
    return turns
