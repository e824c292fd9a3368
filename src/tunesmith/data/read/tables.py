"""Rows of a table: CSV and TSV with physical line numbers, Parquet and Arrow files, and folders of them.

Not here: what a row means (formats). Rows come one batch after the other; nothing keeps them.
Called by data.load.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.read.decode import Fault, UnreadableError, utf8_fault

BATCH_ROWS = 512
TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
NO_PYARROW = Fault(
    "unreadable_file", "Parquet and Arrow files are read with pyarrow.", "pip install 'tunesmith[parquet]'"
)


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table: its first and last line in the file (both the row's number in a columnar one)."""

    line: int
    end: int
    values: dict[str, Any] | None
    fault: Fault | None = None


def csv_records(stream: BinaryIO, *, delimiter: str | None, max_bytes: int) -> tuple[list[str], int, Iterator[Record]]:
    """The columns, the last line of the header, and the rows.

    Tabs separate where `delimiter` says so, else what stands most often in the header: commas, semicolons or tabs.

    Raises UnreadableError when there is no header to go by.
    """
    csv.field_size_limit(max_bytes)  # of the whole process, and beyond what any cell needs
    bad_lines: dict[int, Fault] = {}
    lines = _text_lines(stream, bad_lines, max_bytes)
    header = next(lines, "")
    if not header.strip():
        raise UnreadableError(
            Fault("empty_file", "the table has no header.", "Name the columns in the first line.", None, 1)
        )
    if delimiter != "\t":
        delimiter = max(",;\t", key=header.count)
    reader = csv.reader(_chain(header, lines), delimiter=delimiter, strict=True)
    columns = [name.strip() for name in next(reader)]
    if twice := sorted({name for name in columns if columns.count(name) > 1 or not name}):
        what = f"the header has the column {twice[0]!r} {'twice' if twice[0] else 'without a name'}."
        raise UnreadableError(Fault("not_jsonl", what, "Give each column one name.", 1, 1))
    return columns, reader.line_num, _csv_rows(reader, columns, bad_lines)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _csv_rows(reader: Any, columns: list[str], bad_lines: Mapping[int, Fault]) -> Iterator[Record]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            todo = "Put cells that hold quotes, commas or line breaks in double quotes, and double the quotes in them."
            yield Record(line, reader.line_num, None, Fault("broken_csv", f"this row is no CSV: {error}.", todo, 1))
            continue
        if cells is None:
            return
        end = reader.line_num
        faults = (bad_lines[number] for number in range(line, end + 1) if number in bad_lines)
        fault = next(faults, None) if bad_lines else None
        if not cells and fault is None:
            yield Record(line, end, None)  # blank
        elif fault is None and len(cells) != len(columns):
            what = f"the row has {len(cells)} cells, the header {len(columns)}."
            todo = "Fill the row; a comma or quote inside a cell must stand in double quotes."
            yield Record(line, end, None, Fault("broken_csv", what, todo, 1))
        else:
            yield Record(line, end, {name: _cell(cell) for name, cell in zip(columns, cells, strict=False)}, fault)


def _cell(text: str) -> Any:
    """A cell's text; turns and tools that were written as JSON are read, since a table cannot hold them otherwise."""
    if text[:2] not in ("[{", '{"'):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_turns = isinstance(value, list) and all(
        isinstance(item, dict) and item.keys() & {"role", "from", "function"} for item in value
    )
    return value if is_turns else text


def _text_lines(stream: BinaryIO, bad_lines: dict[int, Fault], max_bytes: int) -> Iterator[str]:
    """Lines as text. What is not UTF-8 is replaced, and its row refused: `bad_lines` has its line, which csv loses."""
    number = 0
    while raw := stream.readline(max_bytes + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            bad_lines[number] = utf8_fault(raw, error.start)
            yield raw.decode(errors="replace")


# -- Parquet and Arrow ----------------------------------------------------------------------------------------------


def is_columnar(path: Path, head: bytes) -> bool:
    return head.startswith((b"PAR1", b"ARROW1")) or (path.suffix == ".arrow" and head.startswith(b"\xff\xff\xff\xff"))


def folder_files(folder: Path) -> list[Path]:
    """The files, in order, of a folder that Hugging Face `datasets` wrote (save_to_disk), or of a folder of Parquet.

    Raises UnreadableError when it is neither, or holds several splits.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json_file(folder / "dataset_dict.json").get("splits", [])
        raise UnreadableError(_several(folder, [str(folder / name) for name in splits]))
    if (folder / "state.json").is_file():
        state = _json_file(folder / "state.json")
        if state.get("_indices_files"):
            what = "this data set is a selection that was not written out."
            raise UnreadableError(Fault("unreadable_file", what, "Call .flatten_indices() before .save_to_disk()."))
        return [folder / entry["filename"] for entry in state.get("_data_files", [])]
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("*.arrow"))
    if not files:
        what = "this is a directory without Parquet or Arrow files."
        raise UnreadableError(Fault("unreadable_file", what, "Name the data file inside it."))
    if len({path.name.split("-")[0] for path in files}) > 1 and any("-of-" in path.name for path in files):
        raise UnreadableError(_several(folder, [str(path) for path in files]))
    return files


def columnar_records(files: Iterable[Path]) -> Iterator[Record]:
    """Rows numbered through all files from 1. Raises UnreadableError."""
    number = 0
    for path in files:
        for batch in _batches(path):
            for values in batch.to_pylist():
                number += 1
                yield Record(number, number, {key: _plain(value) for key, value in values.items()})


def _batches(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise UnreadableError(NO_PYARROW) from None
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic.startswith(b"PAR1"):
            with parquet.ParquetFile(path) as table:
                yield from table.iter_batches(BATCH_ROWS)
            return
        with pyarrow.memory_map(str(path)) as mapped:
            if magic == b"ARROW1":
                reader = ipc.open_file(mapped)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                batches = iter(ipc.open_stream(mapped))
            for batch in batches:
                yield from (batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS))
    except (pyarrow.ArrowException, OSError) as error:
        what = f"{path.name} is no whole Parquet or Arrow file ({str(error).splitlines()[0]})."
        raise UnreadableError(Fault("unreadable_file", what, "Download or write it again.")) from error


def _plain(value: Any) -> Any:
    """A value as JSON has it: dates as ISO texts, and null for what is no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _several(folder: Path, parts: list[str]) -> Fault:
    return Fault(
        "unreadable_file", f"{folder.name} holds several splits.", f"Name one of them: {', '.join(parts[:5])}."
    )


def _json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fault = Fault("unreadable_file", f"{path.name} is no JSON ({error}).", "Write the data set again.")
        raise UnreadableError(fault) from error
    return value if isinstance(value, dict) else {}
