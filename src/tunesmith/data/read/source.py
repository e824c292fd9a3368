"""The rows of one file, decoded but not judged: lines of JSON, elements of an array, records of a table.

Not here: packing (streams), CSV and Parquet (tables), what a row must look like (formats, chat).
Called by data.load, which makes Examples of the rows, and data.read.scan, which only counts.
"""

from __future__ import annotations

import difflib
import hashlib
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.data.read import formats, tables
from tunesmith.data.read.array import elements, is_array
from tunesmith.data.read.decode import OBJECT_TODO, UNSURE, Fault, UnreadableError, decode_fast, decode_line, utf8_fault
from tunesmith.data.read.sniff import binary_fault, sniff
from tunesmith.data.read.streams import BUFFER_BYTES, Stream, open_bytes, sha256_of

MAX_LINE_BYTES = 64 * 1024 * 1024
HEAD_BYTES = 1 << 16
LONG_BYTES = 1 << 23  # a longer line goes the careful way, which holds less of it at once
BOM = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """`line` is 0 for the file as a whole; `raw` is the JSON text, None in tables; `place` is the line and column of
    an array's element."""

    line: int
    raw: bytes | str | None
    value: Any
    fault: Fault | None = None
    place: tuple[int, int] | None = None

    @property
    def text(self) -> str | None:
        return self.raw.decode(errors="replace") if isinstance(self.raw, bytes) else self.raw


class Source:
    """The rows of a file, once. The counts are whole when they have all been taken."""

    def __init__(self, path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.path = path
        self.max_line_bytes = max_line_bytes
        self.unit = "line"  # or "row", where lines mean nothing
        self.columns: list[str] = []  # of a table
        self.packed = ""  # how, and how much
        self.num_lines = 0
        self.noted = {issue: array("Q") for issue in ("bom", "crlf", "blank_line", "table")}
        self.skim: Callable[[int, bytes], bool] | None = None  # takes lines out before they are decoded
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def rows(self, map: Mapping[str, str]) -> Generator[Row, None, None]:
        """Every row, with the fields `map` names under our names. What makes the file unusable is the last."""
        try:
            if not map:
                yield from self._rows()
                return
            for row in self._rows():
                value, problem = (row.value, None) if row.fault else formats.renamed(row.value, map)
                fault = Fault(problem.issue, problem.what, problem.todo) if problem else row.fault
                if fault and self.columns:
                    raise UnreadableError(fault)  # as in every other row
                yield row._replace(value=value, fault=fault)
        except UnreadableError as error:
            fault = error.fault
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "null" not in str(error):  # a NUL in the file name
                raise
            fault = _unreadable(self.path, error)
        else:
            return
        if not self.num_lines:
            self.forget()
        yield Row(0, None, None, fault)

    def forget(self) -> None:
        """The file was refused: nothing of it counts."""
        self.num_lines = 0
        self.noted = {issue: array("Q") for issue in self.noted}
        self._digest = hashlib.sha256()

    def _rows(self) -> Iterator[Row]:
        if self.path.is_dir():
            files = tables.folder_files(self.path)
            for file in files:
                sha256_of(file, self._digest)
            yield from self._columnar(files)
            return
        with open_bytes(self.path, self._digest) as stream:
            peeked = stream.peek()
            head = peeked[:HEAD_BYTES]
            if not stream.packing and tables.is_columnar(self.path, head):
                self._digest = hashlib.sha256()
                sha256_of(self.path, self._digest)
                yield from self._columnar([self.path])
                return
            suffix = (self.path.with_suffix("") if stream.packing else self.path).suffix.lower()
            is_table = bool(head) and suffix in tables.TABLE_SUFFIXES
            whole = len(peeked) < BUFFER_BYTES and len(peeked) == len(head)
            if fault := binary_fault(head) if is_table else None if is_array(head) else sniff(head, whole=whole):
                raise UnreadableError(fault)
            if is_table:
                yield from self._table(stream, tables.TABLE_SUFFIXES[suffix])
            else:
                yield from self._array(stream) if is_array(head) else self._lines(stream)
            self.packed = stream.packed_words()

    def _lines(self, stream: Stream) -> Iterator[Row]:
        while raw := stream.readline(self.max_line_bytes + 1):
            self.num_lines += 1
            if raw[:1] != b"{" or raw[-2:] != b"}\n":  # as nearly all lines begin and end
                if len(raw) > self.max_line_bytes and not raw.endswith(b"\n"):
                    while (piece := stream.readline(BUFFER_BYTES)) and not piece.endswith(b"\n"):
                        pass
                    what = f"the line is longer than {self.max_line_bytes >> 20} MiB."
                    yield Row(self.num_lines, None, None, Fault("broken_json", what, OBJECT_TODO, 1))
                    continue
                if raw.startswith(BOM):  # also later in the file: files glued together
                    self.noted["bom"].append(self.num_lines)
                    raw = raw[len(BOM) :]
                if raw.endswith((b"\r\n", b"\r")):
                    self.noted["crlf"].append(self.num_lines)
            is_long = len(raw) > LONG_BYTES
            if self.skim and not is_long and self.skim(self.num_lines, raw):
                continue
            value = UNSURE if is_long or raw.isspace() else decode_fast(raw)
            if value is not UNSURE:
                yield Row(self.num_lines, raw, value)
                continue
            text = _text(raw)
            raw = b""  # a long line is not held twice
            if row := _careful(self.num_lines, text):
                yield row
            else:
                self.noted["blank_line"].append(self.num_lines)

    def _array(self, stream: Stream) -> Iterator[Row]:
        """Elements are numbered; what is wrong with one says its line and column."""
        self.unit = "row"
        for element in elements(stream, max_bytes=MAX_LINE_BYTES):
            if isinstance(element, Fault):
                yield Row(0, None, None, element)
                continue
            self.num_lines += 1
            value, place = decode_fast(element.raw), (element.line, element.column)
            if value is not UNSURE:
                yield Row(self.num_lines, element.raw, value, None, place)
            else:
                todo = "Take the comma out."
                blank = Row(self.num_lines, b"", None, Fault("broken_json", "a comma too many.", todo, 1), place)
                yield _careful(self.num_lines, _text(element.raw), place) or blank
        while stream.read(BUFFER_BYTES):  # what follows a broken array counts for the sha256
            pass

    def _table(self, stream: Stream, delimiter: str) -> Iterator[Row]:
        self.columns, header_end, records = tables.csv_records(stream, delimiter=delimiter, max_bytes=MAX_LINE_BYTES)
        self.num_lines = header_end
        self.noted["table"].extend(range(1, header_end + 1))
        for record in records:
            self.num_lines = record.end
            if record.values is None and record.fault is None:
                self.noted["blank_line"].append(record.line)
                continue
            self.noted["table"].extend(range(record.line + 1, record.end + 1))
            yield Row(record.line, None, record.values, record.fault)

    def _columnar(self, files: Iterable[Path]) -> Iterator[Row]:
        self.unit = "row"
        for record in tables.columnar_records(files):
            self.num_lines = record.line
            self.columns = self.columns or list(record.values or ())
            yield Row(record.line, None, record.values)


def _text(raw: bytes) -> str | Fault:
    """A line as text, without its end."""
    end = len(raw) - raw.endswith(b"\n")
    end -= raw.endswith(b"\r", 0, end)
    try:
        return str(memoryview(raw)[:end], "utf-8")
    except UnicodeDecodeError as error:
        return utf8_fault(raw, error.start)


def _careful(number: int, text: str | Fault, place: tuple[int, int] | None = None) -> Row | None:
    """A row that the fast decoder left, with its fault if it has one; None when it is blank."""
    if isinstance(text, Fault):
        return Row(number, None, None, text, place)
    if not text or text.isspace():
        return None
    value, fault = decode_line(text)
    return Row(number, text, value, fault, place)


def _unreadable(path: Path, error: Exception) -> Fault:
    if isinstance(error, FileNotFoundError):
        return Fault("unreadable_file", "there is no such file.", _near_names(path))
    if isinstance(error, PermissionError):
        return Fault("unreadable_file", "you may not read this file.", "Change its permissions (chmod u+r).")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Fault("unreadable_file", f"the file cannot be read ({reason}).", "Check the path and the disk.")


def _near_names(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "Check the path; its directory does not exist either."
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"Did you mean {path.parent / near[0]}?" if near else "Check the path."
