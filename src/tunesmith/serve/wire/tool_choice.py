"""What a request says about calls: whether one must be made, of which tool, and how many.

Not here: the tools themselves (turns.parse_tools), the grammar that keeps a reply to it (serve.grammar). Called by
serve.wire.chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from tunesmith.serve.grammar import MOST_CALLS, Calls
from tunesmith.serve.wire.errors import RequestError
from tunesmith.turns import name_of

MODES = ("none", "auto", "required")
TODO = (
    'should be "none", "auto", "required", {"type": "function", "function": {"name": ...}} or {"type": '
    '"allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}'
)
FUNCTION = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
ALLOWED = {
    "type": "object",
    "properties": {
        "type": {"const": "allowed_tools"},
        "allowed_tools": {
            "type": "object",
            "properties": {
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": FUNCTION, "minItems": 1},
            },
            "required": ["mode", "tools"],
        },
    },
    "required": ["type", "allowed_tools"],
}


@dataclass(frozen=True, slots=True)
class Allowed:
    """Some of the tools: as if the request had sent no others, with `mode` as its choice."""

    mode: str
    names: tuple[str, ...]


def _chosen(given: object) -> object:
    """A mode, the name of a function as (name,), or Allowed."""
    if given in MODES:
        return given
    if isinstance(given, dict) and given.get("type") == "function":
        return (_name(given),)
    if isinstance(given, dict) and given.get("type") == "allowed_tools":
        match given.get("allowed_tools"):
            case {"mode": "auto" | "required" as mode, "tools": [*tools]} if tools:
                return Allowed(mode, tuple(map(_name, tools)))
    raise ValueError(TODO)


def _name(given: object) -> str:
    function = given.get("function") if isinstance(given, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ValueError(TODO)
    return name


Choice = str | tuple[str] | Allowed
ToolChoice = Annotated[
    Choice, BeforeValidator(_chosen), WithJsonSchema({"anyOf": [{"enum": list(MODES)}, FUNCTION, ALLOWED]})
]


def offered(tools: Sequence[Any], choice: Choice) -> tuple[tuple[Any, ...], str | tuple[str]]:
    """The tools that the prompt tells of, and the choice among these. Raises RequestError where one that is allowed is
    not among them."""
    if not isinstance(choice, Allowed):
        return (() if choice == "none" else tuple(tools)), choice
    for name in choice.names:
        _check_is_among(name, tools)
    return tuple(tool for tool in tools if name_of(tool) in choice.names), choice.mode


def _check_is_among(name: str, tools: Sequence[Any]) -> None:
    if name not in map(name_of, tools):
        raise RequestError(f"'tool_choice' names {name!r}, which is not among 'tools'.", param="tool_choice")


def calls_of(
    tools: Sequence[Mapping[str, Any]], choice: str | tuple[str], *, parallel: bool, schema: Mapping[str, Any] | None
) -> Calls | None:
    """What the reply to a prompt with these tools must keep to; None where any text or calls will do. `schema`: what a
    reply that is no call must be JSON of. Raises RequestError for a choice that the tools do not offer."""
    if isinstance(choice, tuple):
        _check_is_among(choice[0], tools)
        named = next(tool for tool in tools if name_of(tool) == choice[0])
        return Calls((named,), "tool_choice", most=1)
    most = MOST_CALLS if parallel else 1
    if choice == "required":
        if not tools:
            raise RequestError("'tool_choice' is required, and there are no 'tools' to call.", param="tool_choice")
        return Calls(tuple(tools), "tool_choice", most=most)
    if not tools or choice == "none":
        return None
    if schema is not None:
        return Calls(tuple(tools), "response_format", most=most, schema=schema)
    return None if parallel else Calls(tuple(tools), "parallel_tool_calls", most=1, text=True)
