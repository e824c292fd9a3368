"""Message and ToolCall: one turn of a conversation, the tools it may call, and the parsers of both.

Not here: what a row of turns must look like as a whole (chat), how a template writes them (render).
Called by chat for rows, whose problems are all listed and never raised.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RowProblem, kind_of, near_of

ROLES = ("system", "developer", "user", "assistant", "tool")  # and "text": one plain text, alone in its Example
CALL_TODO = 'Write it as {"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}.'
TOOL_TODO = 'Write it as {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}.'


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call an assistant turn makes; `arguments` is the text of a JSON object."""

    name: str
    arguments: str
    id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return call if self.id is None else {"id": self.id, **call}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `trained` is only ever True on assistant turns and on a plain text (role "text")."""

    role: str
    content: str
    trained: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The turn in OpenAI's shape."""
        body: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            body["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        places = {"tool_call_id": self.tool_call_id, "name": self.name}
        return body | {key: value for key, value in places.items() if value is not None}


def name_of(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def parse_tools(raw: object) -> tuple[tuple[Mapping[str, Any], ...], list[RowProblem]]:
    """The function schemas of a row, each in OpenAI's shape (one without `type` and `function` around it is given
    them). A text is read as JSON, as data sets keep it in columns."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            return (), [RowProblem("broken_json", "'tools' is a text that is no JSON.", "Make it a list of functions.")]
    if raw is None:
        return (), []
    if not isinstance(raw, list):
        return (), [RowProblem("bad_tools", f"'tools' is {kind_of(raw)}, not a list.", "Make it a list of functions.")]
    tools = []
    for number, item in enumerate(raw, start=1):
        tool = {"type": "function", "function": item} if isinstance(item, dict) and "function" not in item else item
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            return (), [RowProblem("bad_tools", f"tool {number} is no function with a 'name'.", TOOL_TODO)]
        tools.append(tool)
    return tuple(tools), []


def parse_calls(raw: object, place: str) -> tuple[tuple[ToolCall, ...], list[RowProblem]]:
    """The calls of an assistant turn; `place` names the turn in the words of a problem."""
    if not isinstance(raw, list):
        what = f"'tool_calls' of {place} is {kind_of(raw)}, not a list."
        return (), [RowProblem("bad_tools", what, CALL_TODO, near=near_of(raw))]
    calls: list[ToolCall] = []
    for item in raw:
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            return (), [RowProblem("bad_tools", f"a call of {place} has no function 'name'.", CALL_TODO)]
        arguments = function.get("arguments")
        if (text := _object_text(arguments)) is None:
            shown = reprlib.repr(arguments)
            what = f"{place} calls {function['name']!r} with arguments that are no JSON object: {shown}."
            todo = "Write an object, or its JSON as a text; {} for no arguments."
            return (), [RowProblem("broken_json", what, todo, near=near_of(arguments))]
        call_id = item.get("id")
        calls.append(ToolCall(function["name"], text, None if call_id is None else str(call_id)))
    return tuple(calls), []


def parse_turns(raw: object, key: str, *, trained: bool = True) -> tuple[list[Message], list[RowProblem]]:
    """The turns under a key; with `trained` False no answer among them is trained."""
    if not isinstance(raw, list):
        what = f"'{key}' is {kind_of(raw)}, not a list."
        return [], [RowProblem("missing_messages", what, "Make it a list of turns.")]
    if not raw:
        todo = "Add at least a user and an assistant turn."
        return [], [RowProblem("empty_messages", f"'{key}' is empty.", todo)]
    problems: list[RowProblem] = []
    messages: list[Message] = []
    for number, item in enumerate(raw, start=1):
        if plain := _plain_message(item, trained=trained):
            messages.append(plain)
            continue
        place = f"message {number}" if key == "messages" else f"message {number} of '{key}'"
        message, faults = _parse_message(item, place, trained=trained)
        problems.extend(faults)
        if message:
            messages.append(message)
    return messages, problems


def _plain_message(item: Any, *, trained: bool) -> Message | None:
    """A turn of role and text without a fault, which nearly all are; None for what takes a closer look."""
    if type(item) is not dict or len(item) != 2:
        return None
    role, content = item.get("role"), item.get("content")
    if role not in ROLES or type(content) is not str or not content or content.isspace():
        return None
    return Message(role, content, trained and role == "assistant") if _is_whole(content) else None


def _is_whole(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_message(item: object, place: str, *, trained: bool) -> tuple[Message | None, list[RowProblem]]:
    if not isinstance(item, dict):
        what = f"{place} is {kind_of(item)}, not an object."
        return None, [RowProblem("not_object", what, 'Write it as {"role": ..., "content": ...}.')]
    role = item.get("role")
    if role is None:
        return None, [RowProblem("unknown_role", f"{place} has no 'role'.", f"Use one of {', '.join(ROLES)}.")]
    if role not in ROLES:
        what = f"{place} has the unknown role {reprlib.repr(role)}."
        return None, [RowProblem("unknown_role", what, f"Use one of {', '.join(ROLES)}.", near=near_of(role))]
    calls: tuple[ToolCall, ...] = ()
    if item.get("tool_calls"):
        calls, problems = parse_calls(item["tool_calls"], place)
        if role != "assistant":
            problems.append(RowProblem("bad_order", f"{place} ({role}) has 'tool_calls'.", "Only assistants call."))
        if problems:
            return None, problems
    content, fault = _content(item.get("content"), f"the content of {place} ({role})")
    if calls and item.get("content") is None:
        content, fault = "", None
    must_fill = role in ("user", "assistant") and not calls
    if fault := fault or text_problem(content, f"the content of {place} ({role})", must_fill=must_fill):
        return None, [fault]
    weight = 1 if item.get("weight") is None else item["weight"]
    if weight not in (0, 1):
        what = f"{place} has the weight {reprlib.repr(weight)}."
        return None, [RowProblem("bad_order", what, "Use 0 (not trained) or 1.")]
    labels = {key: item[key] for key in ("tool_call_id", "name") if item.get(key) is not None}
    for key, value in labels.items():
        if fault := text_problem(value, f"'{key}' of {place}", must_fill=True):
            return None, [fault]
    return Message(role, str(content), trained and role == "assistant" and weight == 1, calls, **labels), []


def _content(content: object, name: str) -> tuple[object, RowProblem | None]:
    """A list of text parts as one text; anything else as it is."""
    if not isinstance(content, list) or not content:
        return content, None
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) and kind == "text" else None
        if not isinstance(text, str):
            what = f"{name} holds a part that is no text ({reprlib.repr(kind)})."
            return content, RowProblem("unsupported_content", what, "Take the row out: only texts are read.", "[")
        texts.append(text)
    return "".join(texts), None


def text_problem(value: object, name: str, *, must_fill: bool) -> RowProblem | None:
    if value is None:
        return RowProblem("null_content", f"{name} is null or missing.", "Give it a text.", near="null")
    if not isinstance(value, str):
        return RowProblem(
            "null_content", f"{name} is {kind_of(value)}, not a text.", "Give it a text.", near=near_of(value)
        )
    if must_fill and not value.strip():
        return RowProblem(
            "empty_content", f"{name} is empty.", "Write the text, or take the row out.", near=near_of(value)
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{name} holds half of a character (a lone surrogate)."
        return RowProblem("invalid_utf8", what, "Write the whole character.", near=f"\\u{ord(value[error.start]):04x}")
    return None


def order_problems(turns: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Iterator[RowProblem]:
    """Results that answer no call, and calls of functions that the row's tools do not have."""
    known = {name_of(tool) for tool in tools}
    asked: Sequence[ToolCall] = ()
    for number, turn in enumerate(turns, start=1):
        calls, call_id = turn.tool_calls, turn.tool_call_id
        if turn.role != "tool":
            asked = calls
        elif not asked:
            todo = "Put it after the assistant turn whose 'tool_calls' it answers."
            yield RowProblem("bad_order", f"message {number} (tool) follows no call.", todo)
        elif call_id is not None and call_id not in {call.id for call in asked}:
            what = f"message {number} (tool) answers {reprlib.repr(call_id)}, which the turn before did not call."
            yield RowProblem("bad_order", what, "Use the 'id' of the call.", near=near_of(call_id))
        for call in calls:
            if known and call.name not in known:
                what = f"message {number} calls {call.name!r}, which is not among the row's tools."
                yield RowProblem("bad_tools", what, "Add it to 'tools', or correct the name.", near=near_of(call.name))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _object_text(arguments: object) -> str | None:
    """The arguments as JSON text, as they are if they are text; None when they are no object."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
        again = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        again.encode()
    except (ValueError, RecursionError):  # a lone surrogate is a ValueError, too
        return None
    if not isinstance(value, dict):
        return None
    return arguments if isinstance(arguments, str) else again
