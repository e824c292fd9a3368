"""What people decided about rows: accepted, rejected, edited, noted; an append-only log, and what follows from it.

Not here: which rows there are and what is written in the end (review), the keyboard interface (cli.review_screen).
Called by review, history and origin; by the worker, which refuses rows that nobody has approved.
"""

from __future__ import annotations

import getpass
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tunesmith.chat import Example, parse_row
from tunesmith.data.load import SourceRow
from tunesmith.errors import InputError

Action = Literal["accept", "reject", "edit", "note", "undo"]
Status = Literal["open", "pending", "accepted", "rejected"]


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the log. `key` names the row; `example` and `result` are its content ids before and after.

    `edited` is the normal form that an edit made of it. An undo takes back the row's last decision that stands.
    """

    key: str
    action: Action
    example: str
    result: str
    note: str = ""
    edited: str | None = None
    who: str = ""
    time: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """Where a row stands. `example` is the row as it would be trained; 'pending' is generated and not yet approved."""

    status: Status
    example: Example
    decisions: tuple[Decision, ...] = ()  # those that stand, oldest first

    @property
    def last(self) -> Decision | None:
        """The one that set the status."""
        return next((item for item in reversed(self.decisions) if item.action != "note"), None)

    @property
    def notes(self) -> list[Decision]:
        return [item for item in self.decisions if item.note]

    @property
    def reason(self) -> str:
        """What a ledger says of it: 'rejected in review by ada: wrong label'."""
        if self.last is None:
            return "generated, not yet approved in review" if self.status == "pending" else ""
        words = {"accept": "accepted", "reject": "rejected", "edit": "edited"}[self.last.action]
        return f"{words} in review by {self.last.who}" + (f": {self.last.note}" if self.last.note else "")


def is_pending(example: Example) -> bool:
    """Whether a row was generated (its metadata says how) and nobody has approved it yet."""
    made = example.metadata.get("generated")
    return isinstance(made, dict) and not made.get("approved")


def refuse_pending(rows: Iterable[SourceRow], path: Path) -> None:
    """Keep generated rows that nobody has approved out of training.

    Raises:
        InputError: there are such rows.
    """
    lines = [row.line for row in rows if is_pending(row.example)]
    if not lines:
        return
    some = ", ".join(str(line) for line in lines[:5]) + (", ..." if len(lines) > 5 else "")
    noun = "row was" if len(lines) == 1 else "rows were"
    what = f"{path}: {len(lines)} {noun} generated and not approved by anyone (line {some}); nothing was trained."
    raise InputError(what, f"Look through them with `tunesmith review {path}`, and train on the file that it writes.")


def approved(example: Example, *, who: str, time: str) -> Example:
    """The row with the approval in its `generated` mark; any other row as it is."""
    if not is_pending(example):
        return example
    mark = {**example.metadata["generated"], "approved": {"by": who, "time": time}}
    return replace(example, metadata={**example.metadata, "generated": mark})


def decide(key: str, state: State, *, action: Action, note: str = "", edited: Example | None = None) -> Decision:
    """The log line for what a person does to a row that is in `state`, by the user of this process, now."""
    who, time = current_user(), datetime.now(UTC).isoformat(timespec="seconds")
    result = state.example if edited is None else edited
    if action in ("accept", "edit"):
        result = approved(result, who=who, time=time)
    text = result.to_json() if action in ("accept", "edit") and result != state.example else None
    return Decision(key, action, state.example.id, result.id, note, text, who, time)


def current_user() -> str:
    """Who decides: TUNESMITH_USER, or the name of the user who is logged in."""
    try:
        return os.environ.get("TUNESMITH_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container without a user entry
        return "unknown"


def state_of(example: Example, decisions: Iterable[Decision]) -> State:
    """Where a row stands after `decisions` about it (in the order of the log).

    A decision counts for the content it was made about and for what it made of it: a row that was changed
    elsewhere since is open (or pending) again. Notes always stay.
    """
    standing = undone(decisions)
    status: Status = "pending" if is_pending(example) else "open"
    if not standing:
        return State(status, example)
    current, current_id = example, example.id
    counting: list[Decision] = []
    for item in standing:
        if item.action == "note":
            counting.append(item)
        elif current_id in (item.example, item.result):
            counting.append(item)
            status = "rejected" if item.action == "reject" else "accepted"
            if item.edited is not None and current_id == item.example:
                current = _example(item.edited)
                current_id = item.result
    return State(status, current, tuple(counting))


def undone(decisions: Iterable[Decision]) -> list[Decision]:
    """The decisions about one row without those that an undo took back."""
    standing: list[Decision] = []
    for item in decisions:
        if item.action != "undo":
            standing.append(item)
        elif standing:
            standing.pop()
    return standing


class DecisionLog:
    """The log on disk: one JSON object a line, only ever appended to, flushed to disk before a decision counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, decision: Decision) -> None:
        """Raises InputError when the log cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                file.seek(0, os.SEEK_END)
                torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
                body = {name: value for name, value in asdict(decision).items() if value not in ("", None)}
                line = json.dumps(body, ensure_ascii=False).encode() + b"\n"
                file.write(b"\n" + line if torn else line)  # a line torn by a crash must not swallow this one
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            what = f"the review log {self.path} cannot be written ({error.strerror or error})."
            raise InputError(what, "Check the directory's permissions and the free space.") from error

    def read(self) -> list[Decision]:
        """Every decision in the order they were made; a line torn by a crash is left out.

        Raises:
            InputError: the log cannot be read, or holds a line that is no decision.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            what = f"the review log {self.path} cannot be read ({error.strerror or error})."
            raise InputError(what, "Change its permissions.") from error
        found = [self._decision(line, number) for number, line in enumerate(lines, start=1)]
        return [decision for decision in found if decision]

    def by_key(self) -> dict[str, list[Decision]]:
        """The decisions about each row."""
        found: dict[str, list[Decision]] = defaultdict(list)
        for decision in self.read():
            found[decision.key].append(decision)
        return found

    def _decision(self, line: bytes, number: int) -> Decision | None:
        try:
            value = json.loads(line)
        except ValueError:
            return None  # the last line, or one that a crash tore: it was never confirmed
        try:
            return Decision(**value)
        except TypeError as error:
            todo = "Take that line out of the log, or put back what it said."
            raise InputError(f"{self.path}:{number}: this line is no decision.", todo) from error


def _example(text: str) -> Example:
    example, problems = parse_row(json.loads(text))
    if example is None:
        raise InputError(f"an edit in the review log cannot be read: {problems[0].what}", "Undo that edit.")
    return example
