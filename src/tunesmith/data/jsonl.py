"""Whether a file is JSONL, one object a line: its form only, so that what was uploaded can be read later.

Not here: what a row means (load, which refuses more), other formats. One pass; a line at a time is held.
Given to the server by the command `server`, which has every uploaded file of rows checked, large ones in a process of
their own: `python -m tunesmith.data.jsonl` (see serve.checking).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from tunesmith.data.read.array import is_array
from tunesmith.data.read.decode import OBJECT_TODO, Fault, UnreadableError, decode_fast
from tunesmith.data.read.source import Row, Source
from tunesmith.data.read.streams import MAGIC
from tunesmith.data.read.tables import is_columnar
from tunesmith.errors import MAX_SHOWN, DataError, Problem, kind_of

MAX_LINE_BYTES = 4 << 20  # a long conversation is a tenth of it, also when every letter is escaped
MAX_LINES = 3_000_000
MAX_COUNTED = 10_000  # beyond so many wrong lines it is another kind of file, and counting costs more than it tells
HEAD_BYTES = 1 << 16
OUT_OF_MEMORY_EXIT = 3
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
QUOTED = (
    (re.compile(r"^the key '.*' stands", re.S), "a key stands"),
    (re.compile(r"^the number .* is"), "a number is"),
)


def check_jsonl(path: Path, filename: str) -> None:
    """`filename` is what problems call the file; they quote nothing of what is in it.

    Raises:
        DataError: lines are no JSON objects, with the first of them; or the file is none of lines, or too large.
    """
    if fault := _other_kind(path):
        raise DataError([_problem(filename, fault, line=None)])
    source, objects = Source(path, max_line_bytes=MAX_LINE_BYTES), _Objects()
    source.skim = objects.take
    problems: list[Problem] = []
    total = 0
    for row in source.rows({}):
        if found := row.fault or _fault(row):
            total += 1
            if len(problems) < MAX_SHOWN:
                problems.append(_problem(filename, found, line=row.line or found.line))
            if total == MAX_COUNTED:
                break
        else:
            objects.seen = True
    if problems:
        raise DataError(problems, total)
    if not objects.seen:
        raise DataError([_problem(filename, Fault("empty_file", "there is no row in it.", OBJECT_TODO), line=None)])


class _Objects:
    """Takes out the lines that are certainly good, or blank, which are nearly all; the others get a closer look."""

    def __init__(self) -> None:
        self.seen = False

    def take(self, line: int, raw: bytes) -> bool:
        """Raises UnreadableError beyond MAX_LINES."""
        if line > MAX_LINES:
            raise UnreadableError(Fault("bad_input", f"the file has more than {MAX_LINES:,} lines.", "Split it."))
        if raw.isspace():
            return True
        is_object = type(decode_fast(raw)) is dict
        self.seen = self.seen or is_object
        return is_object


def _other_kind(path: Path) -> Fault | None:
    """What `load` reads from a disk, and what is no JSONL all the same."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(tuple(MAGIC.values())):
        return Fault("not_jsonl", "the file is packed.", "Unpack it: gunzip or unzstd.")
    if is_columnar(path, head):
        return Fault("not_jsonl", "this is a Parquet or Arrow file.", "Write its rows as JSONL.")
    if is_array(head):
        return Fault("not_jsonl", "this is one JSON array.", "Write one object per line: jq -c '.[]' FILE > OUT.")
    return None


def _fault(row: Row) -> Fault | None:
    if not isinstance(row.value, dict):
        return Fault("not_an_object", f"the line is {kind_of(row.value)}.", OBJECT_TODO)
    if isinstance(row.raw, str) and (match := ESCAPED_SURROGATE.search(row.raw)) and not _is_text(row.value):
        what = "an escape such as \\ud800 is half of a character."
        return Fault("invalid_text", what, "Write the whole character, as in \\ud83d\\ude00.", match.start() + 1)
    return None


def _is_text(value: Any) -> bool:
    """Whether all texts and keys in a value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem(filename: str, fault: Fault, *, line: int | None) -> Problem:
    what = fault.what
    for pattern, words in QUOTED:
        what = pattern.sub(words, what)
    return Problem(filename, line, fault.column, what, fault.todo, fault.issue)


def main() -> None:
    """Check the file that standard input names, within its limits; the problems go to standard output."""
    import resource

    asked = json.load(sys.stdin)
    memory, seconds = int(asked["memory_bytes"]), int(asked["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the rows
    answer: dict[str, Any] = {"problems": [], "total": 0}
    try:
        check_jsonl(Path(asked["path"]), asked["filename"])
    except DataError as error:
        answer = {"problems": [problem.as_dict() for problem in error.problems], "total": error.total}
    except MemoryError:
        sys.exit(OUT_OF_MEMORY_EXIT)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
