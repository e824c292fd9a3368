"""What people ask, without a judged answer: logged traffic, or rows that end with the user.

Not here: rows to train on (load reads those, and this file with it).
Called by data.advising.advice and by the command `generate`.
"""

from __future__ import annotations

from pathlib import Path

from tunesmith.chat import Message
from tunesmith.data.load import load
from tunesmith.errors import DataError

OPEN_ISSUES = {"missing_assistant", "bad_order", "null_content", "missing_messages"}


def read_inputs(path: Path) -> list[tuple[int, tuple[Message, ...]]]:
    """The line and the turns to answer of each row; a logged answer at its end is left out.

    Raises DataError as `load_examples` does.
    """
    loaded = load(path)
    if loaded.problems and {problem.issue for problem in loaded.problems} <= OPEN_ISSUES:
        loaded = load(path, format="rl")
    if loaded.problems:
        raise DataError(loaded.problems, loaded.num_problems)
    return [(row.line, _asked(row.example.messages)) for row in loaded.examples]


def _asked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[0].role == "text":
        return (Message("user", messages[0].content),)
    last = max((place for place, turn in enumerate(messages) if turn.role != "assistant"), default=0)
    return messages[: last + 1]
