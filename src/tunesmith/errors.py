"""The exception tree: every error a user can meet, with what happened, where, and what to do.

Not here: printing (cli) or HTTP status bodies (serve), which map these classes in one place each.
Raised by every module; `exit_code` is the process's exit status (DESIGN: 0 done, 1 failed, 2 bad input, 3 gate).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one input: where it is, what it is, and what the user can do about it."""

    file: str
    line: int | None  # 1-based, None when the whole file is meant
    column: int | None  # 1-based character in that line
    what: str
    todo: str
    issue: str = "bad_input"  # machine-readable name, as in check reports

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.what} {self.todo}".rstrip()

    def as_dict(self) -> dict[str, object]:
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "issue": self.issue,
            "what": self.what,
            "todo": self.todo,
        }


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A fault inside one row, before it has a place: what was seen, what to do, and the value to point at."""

    issue: str
    what: str
    todo: str
    near: str | None = None  # JSON text to look for in the line, for the column


def kind_of(value: object) -> str:
    """What a JSON value is, in words for a problem."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def near_of(value: object) -> str:
    """JSON text by which a value can be found in its line; of a list or object only the bracket."""
    if isinstance(value, list | dict):
        return "[" if isinstance(value, list) else "{"
    return json.dumps(value, ensure_ascii=False)


def did_you_mean(name: str, known: Iterable[str], *, what: str) -> str:
    """The next step after a name that is not known: the nearest one, or all of them; `what` is their plural."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]}?" if near else f"The {what} are: {', '.join(names)}."


class TunesmithError(Exception):
    """Root of the tree. `message` says what happened and where, `todo` what to do next."""

    exit_code = 1

    def __init__(self, message: str, todo: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.message} {self.todo}".rstrip()


class InputError(TunesmithError):
    """The command line, a recipe or a file cannot be used as it is (exit code 2)."""

    exit_code = 2


class DataError(InputError):
    """A data file has problems. All are kept; the text shows the first 20 and the total."""

    def __init__(self, problems: Sequence[Problem], total: int | None = None) -> None:
        self.problems = list(problems)
        self.total = len(self.problems) if total is None else total
        lines = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if self.total > MAX_SHOWN:
            lines.append(f"... and {self.total - MAX_SHOWN} more")
        noun = "problem" if self.total == 1 else "problems"
        super().__init__("\n".join([*lines, f"{self.total} {noun}; nothing was written."]))


class DatabaseError(InputError):
    """The database that TUNESMITH_DATABASE names, or the one of the home folder, cannot be used."""


class ModelError(TunesmithError):
    """A model, tokenizer, template or adapter cannot be found, loaded or trusted."""


class RunError(TunesmithError):
    """A training run went wrong or failed a check that proves it."""


class ServeError(TunesmithError):
    """A request to, or from, a serving process cannot be answered. `status` is the HTTP status."""

    def __init__(self, message: str, todo: str = "", *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message, todo)
        self.status = status
        self.code = code
