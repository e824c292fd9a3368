"""From a file to Examples with line numbers: everything wrong with it at once, with line, column and what to do.

Not here: how bytes become rows (lines, tables), what a row means (formats), findings that stop nothing (check).
`load` never raises on bad data and is for `check`; every other command uses `load_examples`, which refuses it; `read`
gives the same row by row and keeps none, for files that are larger than memory.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.chat import Example
from tunesmith.data.read import formats
from tunesmith.data.read.decode import Fault
from tunesmith.data.read.sniff import JSONL_TODO
from tunesmith.data.read.source import Row, Source
from tunesmith.errors import DataError, InputError, Problem

MAX_KEPT_PROBLEMS = 10_000  # beyond this problems are counted, not kept: five million bad lines must fit in memory
HEAD_ROWS, HEAD_BYTES = 20, 1 << 20  # how much is looked at before the format of a file is said


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One Example and the physical line it came from (1-based)."""

    line: int
    example: Example


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file as it was read. Every physical line is a row, a blank line, part of a table, or has a problem.

    When the file as a whole was refused (another format, not readable), `num_lines` is 0 and there is one problem.
    `problems` keeps the first MAX_KEPT_PROBLEMS; `problem_counts` counts all of them by issue.
    """

    path: Path
    sha256: str  # of the file's bytes; of nothing when the file was refused before it was read
    examples: list[SourceRow]
    notes: list[Problem]  # what was accepted or decided, one each with counts: bom, crlf, blank_line, format, ...
    problems: list[Problem]
    num_lines: int
    problem_counts: Mapping[str, int] = field(default_factory=dict)
    lines_by_note: Mapping[str, list[int]] = field(default_factory=dict)  # also "table": header, lines inside cells
    format: str = "chat"  # chat, prompt_completion, preference, rl, sharegpt, alpaca or text
    unit: str = "line"  # what `line` counts: "line" of a text file, "row" of a columnar file or a JSON array

    @property
    def num_problems(self) -> int:
        return sum(self.problem_counts.values())

    @property
    def blank_lines(self) -> list[int]:
        return self.lines_by_note.get("blank_line", [])


def load_examples(path: str | Path, *, format: str | None = None, map: Mapping[str, str] | None = None) -> Loaded:
    """Read a file that must be good; `format` and `map` as for `read`.

    Raises:
        DataError: the file has problems; all are in the error, the text shows the first 20 and the total.
    """
    loaded = load(path, format=format, map=map)
    if loaded.problems:
        raise DataError(loaded.problems, loaded.num_problems)
    return loaded


def load(path: str | Path, *, format: str | None = None, map: Mapping[str, str] | None = None) -> Loaded:
    """Read a whole file; `format` and `map` as for `read`. Bad data is listed, never raised."""
    reading = read(path, format=format, map=map)
    rows = [found for found in reading if isinstance(found, SourceRow)]
    noted = {issue: list(lines) for issue, lines in reading.noted.items() if lines}
    counts = dict(reading.counts)
    notes, problems, source = reading.notes, reading.problems, reading.source
    noted = {**{note.issue: [] for note in notes}, **noted}
    return Loaded(
        reading.path, source.sha256, rows, notes, problems, source.num_lines, counts, noted, reading.format, source.unit
    )


def read(path: str | Path, *, format: str | None = None, map: Mapping[str, str] | None = None) -> Reading:
    """One pass over a file of any kind that is known: iterate over it for its SourceRows and Problems, in order.

    JSONL, one JSON array, CSV and TSV by their names, Parquet, Arrow, folders of these as `datasets` writes them; gzip
    and zstandard around the texts. `format` is one of formats.FORMATS, found in the first rows if None; `map` names
    the fields of the file (ours: theirs, as in {"prompt": "question", "completion": "answer"}).

    Raises:
        InputError: there is no such format.
    """
    if format is not None and format not in formats.FORMATS:
        raise InputError(f"there is no format {format!r}.", f"Use one of {', '.join(formats.FORMATS)}.")
    return Reading(Path(path), format, map or {})


class Reading:
    """An iteration over a file that keeps only counts; `notes`, `counts` and `source` are whole at its end."""

    def __init__(self, path: Path, format: str | None, map: Mapping[str, str]) -> None:
        self.path = path
        self.source = Source(path)
        self.wanted, self.map = format, map
        self.format = format or "chat"
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self._own_noted = {issue: array("Q") for issue in ("mixed_format", "unread_key")}
        self.unread: Counter[str] = Counter()

    def __iter__(self) -> Iterator[SourceRow | Problem]:
        for row in self.rows():
            example, problems = self.outcome(row)
            if example:
                yield SourceRow(row.line, example)
            yield from problems

    def rows(self) -> Iterator[Row]:
        """Decoded rows and faults; the format is settled before the first."""
        rows = self.source.rows(self.map)
        head: list[Row] = []
        for row in rows:
            head.append(row)
            if len(head) == HEAD_ROWS or len(row.raw or b"") > HEAD_BYTES:
                break
        if fault := self._settle([row.value for row in head if row.fault is None]):
            rows.close()
            self.source.forget()
            head = [Row(0, None, None, fault)]
        is_empty = not head
        yield from _drain(head)
        yield from rows
        if is_empty:
            what = "the file holds only blank lines." if self.source.unit == "line" else "there are no rows in it."
            yield Row(0, None, None, Fault("empty_file", what, JSONL_TODO))

    def outcome(self, row: Row) -> tuple[Example | None, list[Problem]]:
        """A row's Example, or its problems, which are counted."""
        if row.fault:
            return None, [self._add(row.fault, row)]
        example, faults = formats.parse(row.value, self.format)
        if example:
            self._note_keys(row)
        problems = []
        start = 0
        text = row.text if faults else None
        for fault in faults:
            column = None
            if text is not None:
                found = _find(text, fault.near, start=start)
                start = start if found is None else found + 1
                column = (len(text) - len(text.lstrip()) if found is None else found) + 1
            problems.append(self._add(Fault(fault.issue, fault.what, fault.todo, column), row))
        return example, problems

    @property
    def noted(self) -> Mapping[str, array[int]]:
        """The lines of each note, and under "table" those that are a table's header or go on inside a cell."""
        return self.source.noted | self._own_noted

    @property
    def notes(self) -> list[Problem]:
        """What was accepted or decided about the file, each once."""
        by_lines = [_note(self, issue, lines) for issue, lines in self.noted.items() if lines and issue != "table"]
        about: list[tuple[str, str, str]] = []
        if self.format != "chat" and self.source.num_lines:
            words = formats.FORMATS[self.format].words
            how = "as --format says" if self.wanted else "as its first rows look; --format says otherwise"
            about.append(("format", f"the rows are read as {self.format} ({how}).", f"Each is {words}."))
        if self.source.packed:
            about.append(("packed", self.source.packed, "It was unpacked as it was read."))
        return [*by_lines, *(Problem(str(self.path), None, None, what, todo, issue) for issue, what, todo in about)]

    def _settle(self, values: list[object]) -> Fault | None:
        """Choose the format; a table of which no column is known is refused as a whole."""
        found = self.wanted or formats.detect_file(values)
        self.format = found or "chat"
        if found or not values or not self.source.columns:
            return None
        there = ", ".join(map(repr, self.source.columns[:8]))
        todo = "Say which is which, as in --map prompt=QUESTION,completion=ANSWER."
        return Fault("missing_messages", f"none of the columns {there} is known.", todo)

    def _note_keys(self, row: Row) -> None:
        if self.format in formats.CHAT_SHAPES and ("messages" in row.value) != (self.format == "chat"):
            self._own_noted["mixed_format"].append(row.line)
        if unread := set(formats.unread_keys(row.value)):
            self.unread.update(unread)
            self._own_noted["unread_key"].append(row.line)

    def _add(self, fault: Fault, row: Row) -> Problem:
        line, column, what = row.line or fault.line, fault.column, fault.what
        if row.place and column is not None:  # an element of an array may go over many lines
            before = (row.text or "")[: column - 1]
            breaks = before.count("\n")
            at = column - before.rfind("\n") - 1 if breaks else row.place[1] + column - 1
            what, column = f"line {row.place[0] + breaks}, column {at}: {what}", None
        problem = Problem(str(self.path), line, column, what, fault.todo, fault.issue)
        self.counts[fault.issue] += 1
        if len(self.problems) < MAX_KEPT_PROBLEMS:
            self.problems.append(problem)
        return problem


def _drain(head: list[Row]) -> Iterator[Row]:
    """The rows of a list, each let go of: one of them may be 60 MB."""
    head.reverse()
    while head:
        yield head.pop()


KEYS = "role|content|prompt|completion|text|from|value|chosen|rejected|input|output|name|arguments|tool_call\\w*"


def _find(text: str, near: str | None, *, start: int) -> int | None:
    """Where the faulty value stands: after its key, or anywhere when it is an escape such as \\ud800."""
    if near is None:
        return None
    key = "" if near.startswith("\\u") else rf'(?<!\\)"(?:{KEYS})"\s*:\s*'
    for position in (start, 0):
        if match := re.compile(f"{key}({re.escape(near)})", re.IGNORECASE).search(text, position):
            return match.start(1)
    return None


def _note(reading: Reading, issue: str, lines: array[int]) -> Problem:
    unit = reading.source.unit
    count = f"{len(lines)} of {reading.source.num_lines} {unit}s"
    shown = ", ".join(str(line) for line in lines[:5]) + (", ..." if len(lines) > 5 else "")
    other = "prompt and completion" if reading.format == "chat" else "messages"
    keys = ", ".join(f"{key!r} ({number})" for key, number in reading.unread.most_common(5))
    what, todo = {
        "bom": (f"a byte order mark starts the file (line {shown}).", "It was skipped."),
        "crlf": (f"{count} end with CRLF (Windows): {shown}.", "They were read as LF."),
        "blank_line": (f"{count} are blank: {shown}.", "They were skipped."),
        "mixed_format": (f"{count} have {other}, the others not: {shown}.", "Both were read."),
        "unread_key": (f"turns in {count} have fields that training does not read: {keys}.", "They were left out."),
    }[issue]
    column = 1 if issue in ("bom", "crlf") else None
    return Problem(str(reading.path), lines[0], column, what, todo, issue)
