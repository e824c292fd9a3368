"""Calls of tools: how a base's template writes them, and calls read back from a reply's text.

Not here: how a template writes tools into a prompt (render), replies that must be calls (serve.grammar). A text that is
no call as a whole stays text. Called by serve.grammar, serve.wire.chat and serve.eval_runs.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat import Example, Message
from tunesmith.render import Renderer, RenderError
from tunesmith.turns import ToolCall, name_of

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)  # Hermes, Qwen, SmolLM
MARKS = ("[TOOL_CALLS]", "<|python_tag|>")  # Mistral, Llama: before JSON that is the whole reply
PROBE_NAMES = ("probe_one", "probe_two")
PROBE_ARGUMENTS = {"probe_key": "probe_value"}
PROBE_WORDS = "Let me see."
PROBE_ID = "probe0001"  # nine letters or digits: one family's template refuses any other length


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a template writes a turn of calls: head, name, middle, arguments as a JSON object, tail. Before each further
    call stands `joint` in place of the tail; None where a turn has one call only. `after_words`: whether a call that
    follows words can be read."""

    head: str
    middle: str
    tail: str
    joint: str | None
    after_words: bool


def call_form(renderer: Renderer) -> CallForm | None:
    """The form, found by writing calls with the template; None where it writes them in one that `read_calls` would not
    read."""
    one = _written(renderer, PROBE_NAMES[:1])
    pieces = one and _cut(one[0], PROBE_NAMES[:1])
    if not one or not pieces:
        return None
    head, middle, tail = pieces
    two = _written(renderer, PROBE_NAMES)
    both = two and _cut(two[0], PROBE_NAMES)
    joint = both[2] if both and (both[0], both[1], both[3], both[4]) == (head, middle, middle, tail) else None
    words, calls = read_calls(f"{PROBE_WORDS}\n{one[1]}", _probe_tools(PROBE_NAMES[:1]))
    return CallForm(head, middle, tail, joint, words == PROBE_WORDS and len(calls) == 1)


def _probe_tools(names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    return tuple({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in names)


def _written(renderer: Renderer, names: Sequence[str]) -> tuple[str, str] | None:
    """A turn of calls with all its tokens, and as a reply's text; None where the calls are not read from that."""
    tools = _probe_tools(names)
    calls = tuple(ToolCall(name, json.dumps(PROBE_ARGUMENTS), PROBE_ID) for name in names)
    turn = Message("assistant", "", trained=True, tool_calls=calls)
    try:
        rendered = renderer.render(Example((Message("user", "?"), turn), tools=tools))
    except RenderError:
        return None
    *ids, stop = (token for token, trained in zip(rendered.ids, rendered.trained, strict=True) if trained)
    words, read = read_calls(renderer.decode(ids), tools)
    if stop not in renderer.stop_ids or words or [call.name for call in read] != list(names):
        return None
    whole = renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(whole), renderer.decode(ids)


def _cut(text: str, names: Sequence[str]) -> list[str] | None:
    """What a turn of calls holds before, between and after the names and arguments; None where it cannot be told."""
    pieces, position = [], 0
    for name in names:
        at = text.find(name, position)
        start = text.find("{", at)
        try:
            arguments, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            return None
        if at < 0 or arguments != PROBE_ARGUMENTS:
            return None
        pieces += [text[position:at], text[at + len(name) : start]]
        position = end
    return [*pieces, text[position:]]


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
