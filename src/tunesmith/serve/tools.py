"""Calls of tools, read back from a reply's text.

Not here: how a template writes tools and calls into a prompt (render). A text that is no call as a whole stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.turns import ToolCall, name_of

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)  # Hermes, Qwen, SmolLM
MARKS = ("[TOOL_CALLS]", "<|python_tag|>")  # Mistral, Llama: before JSON that is the whole reply


def read_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[ToolCall, ...]]:
    """The reply's own words, and the calls in it, each of a tool that was given; (text, ()) where there is none that
    can be read."""
    names = {name_of(tool) for tool in tools}
    if "<tool_call>" in text:
        bodies, rest = TAGGED.findall(text), TAGGED.sub("", text)
    else:
        body = text.strip()
        for mark in MARKS:
            body = body.removeprefix(mark)
        bodies, rest = [body], ""
    calls: list[ToolCall] = []
    for body in bodies:
        found = _calls(body, names)
        if not found:
            return text, ()
        calls += found
    return rest.strip(), tuple(calls)


def _calls(body: str, names: set[str]) -> list[ToolCall]:
    """Of one JSON object or a list of them; empty where one is no call of a known tool."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return []
    calls = []
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, dict) or value.get("name") not in names:
            return []
        arguments = _object_text(value.get("arguments", value.get("parameters", {})))
        if arguments is None:
            return []
        calls.append(ToolCall(value["name"], arguments, f"call_{secrets.token_hex(12)}"))
    return calls


def _object_text(arguments: object) -> str | None:
    """A JSON object as text; None for what is none."""
    if isinstance(arguments, dict):
        return json.dumps(arguments, ensure_ascii=False)
    try:
        return arguments if isinstance(arguments, str) and isinstance(json.loads(arguments), dict) else None
    except (ValueError, RecursionError):
        return None
