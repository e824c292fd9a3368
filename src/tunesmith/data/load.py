"""From a file to Examples with line numbers: everything wrong with it at once, with line, column and what to do.

Not here: what a row must look like (chat), findings that stop nothing (check).
`load` never raises on bad data and is for `check`; every other command uses `load_examples`, which refuses it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tunesmith.chat import Example, parse_row
from tunesmith.data.decode import OBJECT_TODO, Fault, decode_line
from tunesmith.data.sniff import JSONL_TODO, sniff
from tunesmith.errors import DataError, Problem

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_KEPT_PROBLEMS = 10_000  # beyond this problems are counted, not kept: five million bad lines must fit in memory
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One Example and the physical line it came from (1-based)."""

    line: int
    example: Example


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file as it was read. Every physical line is a row, a blank line, or has a problem.

    When the file as a whole was refused (another format, not readable), `num_lines` is 0 and there is one problem.
    `problems` keeps the first MAX_KEPT_PROBLEMS; `problem_counts` counts all of them by issue.
    """

    path: Path
    sha256: str  # of the file's bytes; of nothing when the file was refused before it was read
    examples: list[SourceRow]
    notes: list[Problem]  # accepted: bom, crlf, blank_line; one each, with counts
    problems: list[Problem]
    num_lines: int
    problem_counts: Mapping[str, int] = field(default_factory=dict)
    lines_by_note: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def num_problems(self) -> int:
        return sum(self.problem_counts.values())

    @property
    def blank_lines(self) -> list[int]:
        return self.lines_by_note.get("blank_line", [])


def load_examples(path: str | Path) -> Loaded:
    """Read a file that must be good.

    Raises:
        DataError: the file has problems; all are in the error, the text shows the first 20 and the total.
    """
    loaded = load(path)
    if loaded.problems:
        raise DataError(loaded.problems, loaded.num_problems)
    return loaded


def load(path: str | Path) -> Loaded:
    """Read chat `messages` or `prompt`/`completion` JSONL, line by line. Bad data is listed, never raised."""
    path = Path(path)
    reader = _Reader(path)
    try:
        with path.open("rb") as file:
            head = file.peek()
            fault = sniff(head, whole=os.fstat(file.fileno()).st_size == len(head))
            if fault:
                reader.refuse(fault)
            else:
                reader.read(file)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the file name
        if isinstance(error, ValueError) and "null" not in str(error):
            raise
        return _unreadable(path, error)
    return reader.loaded()


def _unreadable(path: Path, error: Exception) -> Loaded:
    reader = _Reader(path)
    if isinstance(error, FileNotFoundError):
        what, todo = "there is no such file.", _near_names(path)
    elif isinstance(error, IsADirectoryError):
        what, todo = "this is a directory.", "Name the JSONL file inside it."
    elif isinstance(error, PermissionError):
        what, todo = "you may not read this file.", "Change its permissions (chmod u+r)."
    else:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        what, todo = f"the file cannot be read ({reason}).", "Check the path and the disk."
    reader.refuse(Fault("unreadable_file", what, todo))
    return reader.loaded()


def _near_names(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "Check the path; its directory does not exist either."
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"Did you mean {path.parent / near[0]}?" if near else "Check the path."


class _Reader:
    """Takes the lines of one file in turn and keeps what came of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        self.rows: list[SourceRow] = []
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self.noted: dict[str, list[int]] = {"bom": [], "crlf": [], "blank_line": []}
        self.num_lines = 0

    def read(self, file: BinaryIO) -> None:
        for raw in _physical_lines(file, self.digest):
            self.num_lines += 1
            if raw is None:
                what = f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB."
                self.add(Fault("broken_json", what, OBJECT_TODO, 1))
            else:
                self.take(raw)
        if not self.rows and not self.counts:
            self.add(Fault("empty_file", "the file holds only blank lines.", JSONL_TODO), whole_file=True)

    def take(self, raw: bytes) -> None:
        if raw.startswith(BOM):  # also later in the file: files glued together
            self.noted["bom"].append(self.num_lines)
            raw = raw[len(BOM) :]
        body = raw.removesuffix(b"\n")
        if body.endswith(b"\r"):
            self.noted["crlf"].append(self.num_lines)
            body = body[:-1]
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            self.add(_utf8_fault(body, error.start))
            return
        if text.strip():
            self.take_row(text)
        else:
            self.noted["blank_line"].append(self.num_lines)

    def take_row(self, text: str) -> None:
        value, fault = decode_line(text)
        if fault:
            self.add(fault)
            return
        example, row_problems = parse_row(value)
        if example:
            self.rows.append(SourceRow(self.num_lines, example))
        start = 0
        for problem in row_problems:
            found = _find(text, problem.near, start=start)
            start = start if found is None else found + 1
            column = (len(text) - len(text.lstrip()) if found is None else found) + 1
            self.add(Fault(problem.issue, problem.what, problem.todo, column))

    def add(self, fault: Fault, *, whole_file: bool = False) -> None:
        self.counts[fault.issue] += 1
        if len(self.problems) < MAX_KEPT_PROBLEMS:
            line = fault.line if whole_file else self.num_lines
            self.problems.append(Problem(str(self.path), line, fault.column, fault.what, fault.todo, fault.issue))

    def refuse(self, fault: Fault) -> None:
        self.add(fault, whole_file=True)

    def loaded(self) -> Loaded:
        noted = {issue: lines for issue, lines in self.noted.items() if lines}
        notes = [_note(self.path, issue, lines=lines, num_lines=self.num_lines) for issue, lines in noted.items()]
        digest = self.digest.hexdigest()
        return Loaded(self.path, digest, self.rows, notes, self.problems, self.num_lines, dict(self.counts), noted)


def _physical_lines(file: BinaryIO, digest: _Hash) -> Iterator[bytes | None]:
    """Yield each line with its end; None stands for a line longer than MAX_LINE_BYTES, which is only hashed."""
    while raw := file.readline(MAX_LINE_BYTES + 1):
        digest.update(raw)
        if len(raw) <= MAX_LINE_BYTES or raw.endswith(b"\n"):
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(1 << 20)
            digest.update(raw)
        yield None


def _utf8_fault(body: bytes, start: int) -> Fault:
    column = len(body[:start].decode("utf-8")) + 1
    what = f"byte 0x{body[start]:02x} is not UTF-8."
    return Fault("invalid_utf8", what, "Save the file as UTF-8 (it may be Latin-1 or Windows-1252 here).", column)


def _find(text: str, near: str | None, *, start: int) -> int | None:
    """Where the faulty value stands: after its key, or anywhere when it is an escape such as \\ud800."""
    if near is None:
        return None
    key = "" if near.startswith("\\u") else r'(?<!\\)"(?:role|content|prompt|completion)"\s*:\s*'
    for position in (start, 0):
        if match := re.compile(f"{key}({re.escape(near)})", re.IGNORECASE).search(text, position):
            return match.start(1)
    return None


def _note(path: Path, issue: str, *, lines: list[int], num_lines: int) -> Problem:
    count = f"{len(lines)} of {num_lines} lines"
    shown = ", ".join(str(line) for line in lines[:5]) + (", ..." if len(lines) > 5 else "")
    what, todo = {
        "bom": (f"a byte order mark starts the file (line {shown}).", "It was skipped."),
        "crlf": (f"{count} end with CRLF (Windows): {shown}.", "They were read as LF."),
        "blank_line": (f"{count} are blank: {shown}.", "They were skipped."),
    }[issue]
    return Problem(str(path), lines[0], None if issue == "blank_line" else 1, what, todo, issue)
