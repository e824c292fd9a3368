"""What a request says about calls: whether one must be made, of which tool, and how many.

Not here: the tools themselves (turns.parse_tools), the grammar that keeps a reply to it (serve.grammar). Called by
serve.wire.chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from tunesmith.serve.grammar import MOST_CALLS, Calls
from tunesmith.serve.wire.errors import RequestError
from tunesmith.turns import name_of

MODES = ("none", "auto", "required")
TODO = 'should be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
FUNCTION = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}


def _chosen(given: object) -> object:
    """A mode, or the name of a function as (name,)."""
    if given in MODES:
        return given
    function = given.get("function") if isinstance(given, dict) and given.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ValueError(TODO)
    return (name,)


ToolChoice = Annotated[
    str | tuple[str], BeforeValidator(_chosen), WithJsonSchema({"anyOf": [{"enum": list(MODES)}, FUNCTION]})
]


def calls_of(
    tools: Sequence[Mapping[str, Any]], choice: str | tuple[str], *, parallel: bool, schema: Mapping[str, Any] | None
) -> Calls | None:
    """What the reply to a prompt with these tools must keep to; None where any text or calls will do. `schema`: what a
    reply that is no call must be JSON of. Raises RequestError for a choice that the tools do not offer."""
    if isinstance(choice, tuple):
        named = tuple(tool for tool in tools if name_of(tool) == choice[0])
        if not named:
            raise RequestError(f"'tool_choice' names {choice[0]!r}, which is not among 'tools'.", param="tool_choice")
        return Calls(named[:1], "tool_choice", most=1)
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
