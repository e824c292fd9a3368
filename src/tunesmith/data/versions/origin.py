"""Where a row came from: the file and line, every version that touched it, decisions, and the runs that trained on it.

Not here: the terminal (cli.data), the versions themselves (dataset, history).
Called by the command `data why`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.chat import Example
from tunesmith.data.dataset import read_dataset, read_left, read_row
from tunesmith.data.ledger import LedgerRow
from tunesmith.data.versions.decisions import Decision, State, state_of
from tunesmith.data.versions.history import decisions_of, lineage, name_of, names, numbers_of, resolve
from tunesmith.errors import InputError
from tunesmith.runs import Run, is_run
from tunesmith.store import list_runs


@dataclass(frozen=True, slots=True)
class Touch:
    """A version in which the row is new, changed or gone: what was done, from which file and line."""

    version: str
    created: str
    operation: str  # 'add' or 'review'
    effect: str  # 'added', 'edited', 'removed', 'returned'
    file: str
    line: int | None
    reason: str
    example: Example | None


@dataclass(frozen=True, slots=True)
class Use:
    """A run whose ledger names the row in one of the contents it has had."""

    run: str
    state: str
    status: str  # of the row: trained, held_out, dropped, ...
    line: int
    example: str
    directory: str


@dataclass(frozen=True, slots=True)
class Origin:
    name: str
    row: int
    touches: list[Touch]  # oldest first
    decisions: list[Decision]
    state: State | None  # None when the row is not in the newest version
    uses: list[Use]


def parse_place(root: Path, text: str) -> tuple[str, int]:
    """The data set and row number that 'NAME#ROW' or 'NAME|TAG|ID:LINE' mean.

    Raises:
        InputError: it is neither, or there is no such line.
    """
    name, mark, digits = text.rpartition("#")
    if mark and digits.isdigit():
        if name not in names(root):
            raise InputError(f"there is no data set {name!r} in {root}.", "`tunesmith data log` lists them.")
        return name, int(digits)
    version, mark, digits = text.rpartition(":")
    if not (mark and digits.isdigit()):
        todo = "Write NAME#ROW, such as support#17, or NAME:LINE, TAG:LINE or ID:LINE."
        raise InputError(f"{text!r} names no row.", todo)
    dataset = read_dataset(root / resolve(root, version))
    numbers_of(dataset)  # says so when the version belongs to no data set
    row = next((row for row in dataset.ledger if row.line == int(digits)), None)
    if row is None or row.row is None:
        what = f"line {digits} of {dataset.source.name} is no row of {version}"
        raise InputError(f"{what}{f' ({row.status}: {row.reason})' if row else ''}.", "`tunesmith data show` shows it.")
    return str(name_of(dataset.operations)), row.row


def origin(root: Path, name: str, *, row: int) -> Origin:
    """Follow one row of a data set through its versions.

    Raises:
        InputError: no version of the data set ever had the row.
    """
    touches: list[Touch] = []
    now: Example | None = None
    for manifest in reversed(list(lineage(root, names(root)[name]))):
        before = now
        place, now = read_row(root, manifest, number=row)
        if now != before:
            place = place or next((gone for gone in read_left(root, manifest) if gone.row == row), None)
            effect = "removed" if now is None else "edited" if before else "returned" if touches else "added"
            touches.append(_touch(manifest, place, effect=effect, example=now))
    if not touches:
        raise InputError(f"{name} has no row {row}.", f"`tunesmith data show {name}` shows its rows.")
    decisions = decisions_of(root, name).by_key().get(str(row), [])
    contents = {touch.example.id for touch in touches if touch.example} | {item.result for item in decisions}
    return Origin(name, row, touches, decisions, state_of(now, decisions) if now else None, list(uses(contents)))


def _touch(manifest: Mapping[str, Any], place: LedgerRow | None, *, effect: str, example: Example | None) -> Touch:
    step = manifest["operations"][-1]
    reason = (place.reason if place else "") or str(step.get("message", ""))
    line = place.line if place and example else None  # the line of a row that left is the parent's
    file = str(manifest["source"]["name"])
    return Touch(manifest["id"], manifest["created"], step["operation"], effect, file, line, reason, example)


def uses(contents: Iterable[str]) -> Iterator[Use]:
    """The runs on this machine that had one of these contents in their data, newest run first."""
    wanted = {content.encode() for content in contents}
    for listed in list_runs():
        run = Run(Path(listed["directory"]))
        path = run.directory / "ledger.jsonl"
        if not (is_run(run.directory) and path.is_file()):
            continue
        for line in path.read_bytes().splitlines():
            if any(content in line for content in wanted):
                row: dict[str, Any] = json.loads(line)
                if str(row["example"]).encode() in wanted:
                    state = str(run.status["state"])
                    yield Use(listed["id"], state, row["status"], row["line"], row["example"], listed["directory"])
