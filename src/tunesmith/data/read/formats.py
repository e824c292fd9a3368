"""The formats in which people keep rows: which one a row has, and the row rewritten into one that chat.parse_row reads.

Not here: files (load), what makes a row valid (chat.parse_row judges the rows of every format).
Called by data.load, which asks once for the format of a file and then for the Example of each row.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.chat import Example, no_turns, parse_row, shape_of
from tunesmith.errors import RowProblem, kind_of, near_of

Row = dict[str, Any]
OPENAI_PREFERENCE = ("preferred_output", "non_preferred_output")
SHAREGPT = ("conversations", "conversation")
SHAREGPT_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bing": "assistant",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip
# Beside one of these a `text` is half of a question and its answer, and not to be trained on alone.
ANSWERS = ("label", "labels", "answer", "output", "response", "target", "category", "class", "intent", "summary")
TURN_LISTS = ("messages", *SHAREGPT, "prompt", "completion", "chosen", "rejected", *OPENAI_PREFERENCE)
READ_TURN_KEYS = {"role", "content", "weight", "tool_calls", "tool_call_id", "name", "from", "value"}


def detect(row: object) -> str | None:
    """The format a row looks like by its keys, or None."""
    if not isinstance(row, dict):
        return None
    if any(key in row for key in OPENAI_PREFERENCE):
        return "preference"
    shape = shape_of(row)
    if shape in ("preference", "chat"):
        return shape
    if any(isinstance(row.get(key), list) for key in SHAREGPT):
        return "sharegpt"
    if "instruction" in row:
        return "alpaca"
    return None if shape == "text" and any(key in row for key in ANSWERS) else shape


def detect_file(rows: Sequence[object]) -> str | None:
    """The format of a file by its first rows: the commonest (the first of equals), or None.

    Chat of which every row ends without an answer and holds something beside its messages is for reinforcement.
    """
    found = Counter(format for row in rows if (format := detect(row)))
    if not found:
        return None
    format = found.most_common(1)[0][0]
    return "rl" if format == "chat" and all(map(_is_open, rows)) else format


def parse(row: object, format: str) -> tuple[Example | None, list[RowProblem]]:
    """A row of a file in this format as an Example, or everything that is wrong with it."""
    if not isinstance(row, dict):
        return parse_row(row)
    kind = FORMATS[format]
    if not any(key in row for key in kind.keys):
        return None, [_other(row, format)]
    try:
        new = kind.rewrite(row)
    except _UnfitError as error:
        return None, [error.problem]
    if shape_of(new) not in kind.shapes:
        others = ", ".join(
            repr(key) for key in new if key in ("messages", "prompt", "completion", "chosen", "rejected")
        )
        what = f"a row of the format {format} cannot have {others} beside its own fields."
        return None, [RowProblem("mixed_format", what, "Rename or remove them, or choose another --format.")]
    return parse_row(new)


def renamed(row: object, map: Mapping[str, str]) -> tuple[object, RowProblem | None]:
    """The row with the fields that `map` names (ours: theirs) under our names, in place of any that had them."""
    if not isinstance(row, dict):
        return row, None
    for theirs in map.values():
        if theirs not in row:
            return row, missing_column(theirs, list(row))
    kept = {key: value for key, value in row.items() if key not in map and key not in map.values()}
    return {**{ours: row[theirs] for ours, theirs in map.items()}, **kept}, None


def missing_column(column: str, columns: Sequence[str]) -> RowProblem:
    """What to say when --map names a field that is not there."""
    near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
    there = ", ".join(map(repr, columns[:8])) + (", ..." if len(columns) > 8 else "")
    todo = f"Did you mean {near[0]!r}?" if near else f"There are: {there}."
    return RowProblem("missing_column", f"there is no {column!r} here, which --map names.", todo)


def unread_keys(row: object) -> Iterator[str]:
    """Keys of a row's turns that nothing reads, such as `reasoning_content`; they are left out, and said."""
    if isinstance(row, dict):
        for key, turns in row.items():
            for turn in turns if isinstance(turns, list) and key in TURN_LISTS else ():
                if isinstance(turn, dict) and not turn.keys() <= READ_TURN_KEYS:
                    yield from (name for name in turn if name not in READ_TURN_KEYS and turn[name] is not None)


class _UnfitError(Exception):
    """A row that cannot be rewritten; never leaves this module."""

    def __init__(self, problem: RowProblem) -> None:
        super().__init__(problem.what)
        self.problem = problem


def _is_open(row: object) -> bool:
    """Whether a chat row waits for an answer and brings more than its turns, such as a reference."""
    turns = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return False
    return turns[-1].get("role") in ("user", "tool") and bool(row.keys() - {"messages", "tools", "weight"})


def _other(row: Row, format: str) -> RowProblem:
    """A row without the fields of the file's format."""
    found = detect(row)
    todo = f"It looks like {found}: put rows of another format into a file of their own." if found else ""
    if format in CHAT_SHAPES:
        problem = no_turns(row)
        return replace(problem, todo=todo or f"{problem.todo} Or name your fields with --map.")
    what = f"the row has {', '.join(map(repr, list(row)[:5])) or 'no keys'}; the file is {format}."
    return RowProblem("mixed_format", what, todo or f"Give it {FORMATS[format].keys[0]!r}.")


def _chat(row: Row) -> Row:
    """TRL's `prompt` and `completion` as lists of turns are one conversation of which the completion is trained."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if "messages" in row or not isinstance(prompt, list) or not isinstance(completion, list):
        return row
    context = [
        {**turn, "weight": 0} if isinstance(turn, dict) and turn.get("role") == "assistant" else turn for turn in prompt
    ]
    return {"messages": [*context, *completion], **_without(row, "prompt", "completion")}


def _rl(row: Row) -> Row:
    if "messages" in row:
        return _joined({"prompt": row["messages"]}, _without(row, "messages"))
    return {**row, "prompt": _as_turns(row["prompt"], "user")}


def _preference(row: Row) -> Row:
    if any(key in row for key in OPENAI_PREFERENCE):
        return _openai_preference(row)
    prompt, used = _preference_prompt(row)
    chosen, rejected = (_as_turns(row.get(key), "assistant") for key in ("chosen", "rejected"))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        missing = "rejected" if isinstance(chosen, list) else "chosen"
        what = f"'{missing}' is {kind_of(row.get(missing))}, not a text or a list of turns."
        raise _UnfitError(RowProblem("missing_assistant", what, "Give both answers."))
    shared = _num_shared(chosen, rejected)
    if shared and (prompt is None or _last_content(prompt) == _last_content(chosen[:shared])):
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if prompt is None:
        what = "there is no prompt, and 'chosen' and 'rejected' do not begin with the same turns."
        raise _UnfitError(RowProblem("missing_messages", what, "Add a 'prompt'."))
    turns = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return _joined(turns, _without(row, "chosen", "rejected", *used))


def _openai_preference(row: Row) -> Row:
    asked = row.get("input")
    if not isinstance(asked, dict):
        what = f"'input' is {kind_of(asked)}, not an object with 'messages'."
        raise _UnfitError(RowProblem("missing_messages", what, "Put the turns before the answer there."))
    chosen, rejected = (row.get(key) for key in OPENAI_PREFERENCE)
    turns = {"prompt": asked.get("messages"), "chosen": chosen, "rejected": rejected}
    tools = {"tools": asked["tools"]} if "tools" in asked else {}
    left = _without(asked, "messages", "tools")
    rest = _without(row, "input", *OPENAI_PREFERENCE)
    return _joined({**turns, **tools, **({"input": left} if left else {})}, rest)


def _preference_prompt(row: Row) -> tuple[list[Any] | None, Sequence[str]]:
    """The turns before the two answers, where there are any, and the fields they were in."""
    if row.get("prompt") is not None:
        return _as_turns(row["prompt"], "user"), ("prompt",)
    if any(key in row for key in SHAREGPT):
        return _sharegpt(row)["messages"], (*SHAREGPT, "system", "prompt")
    if "instruction" in row:
        return _alpaca(row)["messages"], ("instruction", "input", "system", "history", "prompt")
    return None, ("prompt",)


def _num_shared(chosen: Sequence[object], rejected: Sequence[object]) -> int:
    """How many turns both begin with, when these end before an answer: TRL's implicit prompt."""
    pairs = zip(chosen, rejected, strict=False)
    shared = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
    while shared and isinstance(turn := chosen[shared - 1], dict) and turn.get("role") == "assistant":
        shared -= 1  # the same first words of two answers belong to the answers
    return shared


def _last_content(turns: Sequence[object]) -> object:
    last = turns[-1] if turns else None
    return last.get("content") if isinstance(last, dict) else None


def _sharegpt(row: Row) -> Row:
    key = next(key for key in SHAREGPT if key in row)
    raw = row[key]
    if not isinstance(raw, list):
        what = f"'{key}' is {kind_of(raw)}, not a list."
        raise _UnfitError(RowProblem("missing_messages", what, "Make it a list of turns with 'from' and 'value'."))
    turns = [*_system(row), *map(_sharegpt_turn, raw)]
    return _joined({"messages": turns}, _without(row, key, "system"))


def _sharegpt_turn(turn: object) -> object:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn  # already role and content, or refused later
    role, content = SHAREGPT_ROLES.get(str(turn["from"]), turn["from"]), turn.get("value")
    if role == "function_call":
        try:
            calls = json.loads(content) if isinstance(content, str) else content
        except (ValueError, RecursionError):
            what = "a 'function_call' is no JSON with 'name' and 'arguments'."
            raise _UnfitError(RowProblem("broken_json", what, "Correct it.", near_of(content))) from None
        calls = calls if isinstance(calls, list) else [calls]
        return {"role": "assistant", "content": None, "tool_calls": calls or [None]}
    return {"role": role, "content": content, **_without(turn, "from", "value", "role", "content")}


def _alpaca(row: Row) -> Row:
    """The instruction and its input, joined by a line break, are the user's turn; `history` holds earlier pairs."""
    asked, given = row.get("instruction"), row.get("input")
    if isinstance(asked, str) and isinstance(given, str) and given.strip():
        asked = f"{asked}\n{given}" if asked.strip() else given
    elif not isinstance(given, str | None):
        what = f"'input' is {kind_of(given)}, not a text."
        raise _UnfitError(RowProblem("null_content", what, "Give it a text.", near_of(given)))
    turns = _system(row)
    history = row.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _UnfitError(RowProblem("bad_order", "'history' is no list of pairs.", "Write [[question, answer]]."))
        turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    turns.append({"role": "user", "content": asked})
    if "output" in row:
        turns.append({"role": "assistant", "content": row["output"]})
    return _joined({"messages": turns}, _without(row, "instruction", "input", "output", "system", "history"))


def _system(row: Row) -> list[Any]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _as_turns(value: object, role: str) -> Any:
    """A text or one turn as a list of turns; anything else as it is, for parse_row to judge."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return [_sharegpt_turn(turn) for turn in value]
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _without(row: Mapping[str, Any], *keys: str) -> Row:
    return {key: value for key, value in row.items() if key not in keys}


def _joined(new: Row, rest: Row) -> Row:
    """Our fields and what else the row held, which may not have the same names."""
    if same := [key for key in new if key in rest]:
        what = f"the row also has a field {same[0]!r}, whose name is taken by its turns."
        raise _UnfitError(RowProblem("mixed_format", what, "Rename or remove it, or choose another --format."))
    return {**new, **rest}


@dataclass(frozen=True, slots=True)
class Format:
    """`keys`: one of them is in every row; `shapes`: what `rewrite` may give, as chat.shape_of names it."""

    keys: tuple[str, ...]
    rewrite: Callable[[Row], Row]
    shapes: tuple[str, ...]
    words: str  # how its rows are read


CHAT_SHAPES = ("chat", "prompt_completion")
FORMATS: Mapping[str, Format] = {
    "chat": Format(("messages", "prompt", "completion"), _chat, CHAT_SHAPES, "conversations"),
    "prompt_completion": Format(("prompt", "completion", "messages"), _chat, CHAT_SHAPES, "a user turn and its answer"),
    "preference": Format(
        ("chosen", "rejected", *OPENAI_PREFERENCE), _preference, ("preference",), "two answers, one of them preferred"
    ),
    "rl": Format(("messages", "prompt"), _rl, ("rl",), "conversations that wait for an answer to be scored"),
    "sharegpt": Format(SHAREGPT, _sharegpt, ("chat",), "conversations of 'from' and 'value'"),
    "alpaca": Format(
        ("instruction",), _alpaca, ("chat",), "instruction and input joined by a line break, and the output"
    ),
    "text": Format(("text",), lambda row: row, ("text",), "plain text, trained as a whole without a chat template"),
}
