"""Two states of a row in two columns, with the words that changed marked, for a terminal or a plain file.

Not here: which rows changed (data.versions.diff).
Called by the commands `data diff` and `data why`, and by the review screen for a row that was edited.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tunesmith.chat import Example, Message

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from tunesmith.data.versions.diff import Change, Side

WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS = 2000  # of a longer text every word counts as changed: comparing is quadratic
CONTEXT_WORDS = 24  # unchanged words shown on each side of a change (spaces count)
OLD, NEW, DIM = "red", "green", "dim"


def changes_table(changes: Sequence[Change], *, colour: bool) -> Table:
    """`colour` False writes [-old-] and {+new+} instead, for files and pipes."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "before", "after", box=None, pad_edge=False, header_style="bold", expand=True)
    table.columns[0].no_wrap = True
    table.columns[1].ratio = table.columns[2].ratio = 1
    for change in changes:
        table.add_row(Text(_title(change), style="bold"), _place(change.before), _place(change.after))
        before, after = (side.example if side else None for side in (change.before, change.after))
        for label, old, new in compared(before, after, colour=colour):
            table.add_row(Text(f"  {label}", style=DIM), old, new)
    return table


def compared(before: Example | None, after: Example | None, *, colour: bool) -> Iterator[tuple[str, Text, Text]]:
    """The parts (turns, weight, metadata) in which two examples differ: name, old text, new text."""
    old, new = (parts(example) if example else {} for example in (before, after))
    for label in {**old, **new}:
        if old.get(label) != new.get(label):
            yield label, *marked_words(old.get(label, ""), new.get(label, ""), colour=colour)


def parts(example: Example) -> dict[str, str]:
    """What can differ between two examples, in the order it is read."""
    found = {}
    for number, turn in enumerate(example.messages, start=1):
        found[f"{number} {turn.role}"] = turn_text(turn)
        if turn.role == "assistant" and not turn.trained and example.kind == "chat":
            found[f"{number} trained"] = "no"
    for number, turn in enumerate(example.rejected, start=1):
        found[f"rejected {number} {turn.role}"] = turn_text(turn)
    if example.tools:
        found["tools"] = json.dumps(example.tools, ensure_ascii=False)
    if example.weight != 1.0:
        found["weight"] = str(example.weight)
    return found | {key: json.dumps(value, ensure_ascii=False) for key, value in example.metadata.items()}


def turn_text(turn: Message) -> str:
    """The content of a turn and its calls of tools."""
    calls = [json.dumps(call.as_dict(), ensure_ascii=False) for call in turn.tool_calls]
    return "\n".join([turn.content, *calls] if turn.content else calls)


def marked_words(old: str, new: str, *, colour: bool) -> tuple[Text, Text]:
    """Both texts with the words that differ marked, and long stretches without a difference left out."""
    from rich.text import Text

    before, after = WORDS.findall(old), WORDS.findall(new)
    left, right = Text(), Text()
    if max(len(before), len(after)) > MAX_WORDS:
        steps: Sequence[tuple[str, int, int, int, int]] = [("replace", 0, len(before), 0, len(after))]
    else:
        steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for number, (step, i, j, k, m) in enumerate(steps):
        if step == "equal":
            same = _shortened(before[i:j], at_start=number == 0, at_end=number == len(steps) - 1)
            left.append(same)
            right.append(same)
        else:
            _mark(left, "".join(before[i:j]), ("[-", "-]") if not colour else OLD)
            _mark(right, "".join(after[k:m]), ("{+", "+}") if not colour else NEW)
    return left, right


def _mark(text: Text, words: str, mark: str | tuple[str, str]) -> None:
    if words and isinstance(mark, str):
        text.append(words, style=f"bold {mark}")
    elif words:
        text.append(f"{mark[0]}{words}{mark[1]}")


def _shortened(words: Sequence[str], *, at_start: bool, at_end: bool) -> str:
    keep_start, keep_end = (0 if at_start else CONTEXT_WORDS), (0 if at_end else CONTEXT_WORDS)
    if len(words) <= keep_start + keep_end + CONTEXT_WORDS:
        return "".join(words)
    return "".join(words[:keep_start]) + " ... " + "".join(words[len(words) - keep_end :])


def _title(change: Change) -> str:
    side = change.after or change.before
    number = f" #{side.number}" if side and side.number is not None else ""
    return change.kind + number


def _place(side: Side | None) -> Text:
    from rich.text import Text

    return Text(f"line {side.line}" if side else "-", style=DIM)
