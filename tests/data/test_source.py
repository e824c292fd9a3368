"""Every container gives the same rows, with the numbers a person would look for; nothing is cut short in silence."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example
from tunesmith.data.ledger import check_conservation, ledger_of
from tunesmith.data.load import load, load_examples, read
from tunesmith.data.read import streams
from tunesmith.data.read.scan import scan
from tunesmith.errors import DataError, InputError

ROWS = [
    {"messages": [{"role": "user", "content": f"é {n}"}, {"role": "assistant", "content": "a\nb"}]} for n in range(3)
]
PAIRS = [{"prompt": f"é, {n}", "completion": 'a\n"b"'} for n in range(3)]
JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def examples(path: Path, **options: Any) -> list[Example]:
    return [row.example for row in load_examples(path, **options).examples]


def expected(tmp_path: Path, rows: list[dict[str, Any]] = ROWS) -> list[Example]:
    path = tmp_path / "expected.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return examples(path)


def csv_text(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# -- packed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("train.jsonl.gz", gzip.compress(JSONL)),
        ("train.jsonl", gzip.compress(JSONL[:50]) + gzip.compress(JSONL[50:]) + b"\0" * 512),
        ("train.jsonl.zst", zstandard.compress(JSONL)),
        ("two frames", zstandard.compress(JSONL[:50]) + zstandard.compress(JSONL[50:])),
        ("train.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ],
)
def test_a_packed_file_is_read_as_it_lies_and_said(tmp_path: Path, name: str, packed: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(packed)
    loaded = load_examples(path)
    assert [row.example for row in loaded.examples] == expected(tmp_path)
    assert loaded.sha256 == hashlib.sha256(packed).hexdigest()
    assert [note.issue for note in loaded.notes] == ["packed"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_packed_file_that_is_cut_off_keeps_its_rows_but_is_refused(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_bytes(pack(JSONL) + pack(JSONL)[:-5])
    loaded = load(path)
    assert [problem.issue for problem in loaded.problems][-1] == "unreadable_file"
    assert "cut off" in loaded.problems[-1].what
    assert len(loaded.examples) >= 3


def test_a_bomb_is_stopped_with_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(JSONL + b"\n" * (1 << 23)))
    problem = load(path).problems[-1]
    assert "250 times its size" in problem.what


# -- one array --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b" \n"])
def test_an_array_gives_numbered_rows(tmp_path: Path, indent: int | None, mark: bytes) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(mark + json.dumps(ROWS, indent=indent).encode() + b"\n")
    loaded = load_examples(path)
    assert [row.example for row in loaded.examples] == expected(tmp_path)
    assert ([row.line for row in loaded.examples], loaded.num_lines, loaded.unit) == ([1, 2, 3], 3, "row")
    check_conservation(ledger_of(loaded), loaded.num_lines)


@pytest.mark.parametrize(
    ("content", "row", "words"),
    [
        (
            b'[\n{"prompt":"a","completion":"b"},\n{"prompt":"a",\n "completion":None}\n]',
            2,
            "line 4, column 15: None is",
        ),
        (b'[{"prompt":"a","completion":"b"},\n 7]', 2, "line 2, column 2: the line holds a number"),
        (b'[\n{"prompt":"a","completion":"b"},,{}]', 2, "a comma too many"),
        (b'[\n{"prompt":"a","completion":"b"},\n{"prompt":"a', 2, "line 3, column"),
        (b'[\n{"prompt":"a","completion":"b"}\n', None, "ends before the array"),
        (b'[\n{"prompt":"a","completion":"b"}\n]\n{}', None, "text follows the array"),
    ],
)
def test_a_fault_in_an_array_has_its_row_and_its_line(tmp_path: Path, content: bytes, row: int, words: str) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(content)
    loaded = load(path)
    assert loaded.problems[0].line == row
    assert words in loaded.problems[0].what
    assert len(loaded.examples) == 1
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.integers(1, 40))
def test_an_array_is_cut_where_json_says_whatever_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], size: int
) -> None:
    from tunesmith.data.read import array

    values = [{"x": text, "y": [text, {"]": "},{"}]} for text in texts]
    monkeypatch.setattr(array, "READ_BYTES", size)
    stream = io.BytesIO(json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    found = [element for element in array.elements(stream, max_bytes=1 << 20) if isinstance(element, array.Element)]
    assert [json.loads(element.raw.decode("utf-8", "surrogatepass")) for element in found] == values
    lines = stream.getvalue().split(b"\n")
    assert [lines[element.line - 1][element.column - 1 :][:1] for element in found] == [b"{"] * len(values)


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.CSV.gz", ",")])
def test_a_table_gives_rows_with_the_line_they_start_on(tmp_path: Path, name: str, delimiter: str) -> None:
    path = tmp_path / name
    content = csv_text(PAIRS, delimiter).replace("\r\n", "\n").encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else b"\xef\xbb\xbf" + content)
    loaded = load_examples(path)
    assert [row.example for row in loaded.examples] == expected(tmp_path, PAIRS)
    assert [row.line for row in loaded.examples] == [2, 4, 6]
    assert loaded.lines_by_note["table"] == [1, 3, 5, 7]
    check_conservation(ledger_of(loaded), loaded.num_lines)


def test_faults_of_a_table_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,completion\n"a\nb",c\nonly\n\nd,\xe9\n"e"f,g\nh,\ni,j\n')
    loaded = load(path)
    assert [(problem.line, problem.issue) for problem in loaded.problems] == [
        (4, "broken_csv"),
        (6, "invalid_utf8"),
        (7, "broken_csv"),
        (8, "empty_content"),
    ]
    assert [row.line for row in loaded.examples] == [2, 9]
    assert loaded.blank_lines == [5]
    check_conservation(ledger_of(loaded), loaded.num_lines)


def test_columns_are_mapped_and_unknown_ones_are_asked_for_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nHi,greeting\nBye,farewell\n")
    with pytest.raises(DataError, match="none of the columns 'text', 'label' is known.*--map prompt="):
        load_examples(path)
    found = examples(path, map={"prompt": "text", "completion": "label"})
    assert [example.answer for example in found] == ["greeting", "farewell"]
    problems = load(path, map={"prompt": "txt", "completion": "label"}).problems
    assert [(problem.line, problem.issue) for problem in problems] == [(None, "missing_column")]
    assert "'text'" in problems[0].todo


def test_turns_written_as_json_into_a_cell_are_turns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(csv_text([{"messages": json.dumps(row["messages"]), "id": "[1]"} for row in ROWS]))
    found = examples(path)
    assert [example.messages for example in found] == [example.messages for example in expected(tmp_path)]
    assert found[0].metadata == {"id": "[1]"}


# -- Parquet, Arrow, folders ------------------------------------------------------------------------------------------


def test_columnar_files_and_folders_give_the_same_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    with ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    saved = tmp_path / "saved"  # as datasets' save_to_disk lays it out
    saved.mkdir()
    with ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    shards = tmp_path / "shards"
    shards.mkdir()
    parquet.write_table(table.slice(0, 2), shards / "train-00000-of-00002.parquet")
    parquet.write_table(table.slice(2), shards / "train-00001-of-00002.parquet")
    for path in (tmp_path / "a.parquet", tmp_path / "a.arrow", saved, shards):
        loaded = load_examples(path)
        assert [row.example for row in loaded.examples] == expected(tmp_path)
        assert ([row.line for row in loaded.examples], loaded.unit) == ([1, 2, 3], "row")
    parquet.write_table(table, shards / "test-00000-of-00001.parquet")
    assert "several splits" in load(shards).problems[0].what
    (saved / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert "saved/train" in load(saved).problems[0].todo


def test_values_that_json_has_not_become_texts_or_null(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from datetime import UTC, datetime

    from pyarrow import parquet

    row = {**PAIRS[0], "time": datetime(2026, 1, 2, tzinfo=UTC), "score": float("nan"), "name": None}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    metadata = examples(tmp_path / "a.parquet")[0].metadata
    assert metadata == {"time": "2026-01-02T00:00:00+00:00", "score": None, "name": None}


# -- formats of a file ------------------------------------------------------------------------------------------------


def test_the_format_of_a_file_is_found_said_and_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text":"a"}\n{"text":"b","prompt":"c","completion":"d"}\n')
    loaded = load(path)
    assert loaded.format == "text"
    assert "text" in loaded.notes[0].what
    assert [(problem.line, problem.issue) for problem in loaded.problems] == [(2, "mixed_format")]
    forced = load(path, format="prompt_completion")
    assert [problem.line for problem in forced.problems] == [1]
    with pytest.raises(InputError, match="sharegpt"):
        read(path, format="share")


def test_fields_of_turns_that_are_left_out_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "c"}]}
    path.write_text(json.dumps(row))
    note = load_examples(path).notes[0]
    assert (note.issue, note.line) == ("unread_key", 1)
    assert "'thinking' (1)" in note.what


# -- memory -----------------------------------------------------------------------------------------------------------

# VmHWM and not ru_maxrss, in which a process begins with the peak of the one that started it.
MEASURED = """
import sys
from tunesmith.data.read.scan import scan
found = scan(sys.argv[1])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(found.num_lines, len(found.problems), int(status["VmHWM"].split()[0]) >> 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize("end", [b'"}]}', b""], ids=["whole", "cut off"])
def test_a_line_of_60_mb_is_judged_within_200_mb(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "long.jsonl"
    start = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"'
    path.write_bytes(JSONL + start + b"x" * 60_000_000 + end + b"\n")
    command = [sys.executable, "-c", MEASURED, str(path)]
    num_lines, num_problems, peak_mib = map(int, subprocess.check_output(command).split())
    path.unlink()
    assert (num_lines, num_problems) == (4, int(not end))
    assert peak_mib < 200


def test_a_scan_says_what_load_says_and_finds_exact_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL + JSONL + b"{}\n\r\n" + json.dumps(PAIRS[0]).encode() + b"\n" + JSONL)
    scanned, loaded = scan(path), load(path)
    assert (scanned.sha256, scanned.num_lines, scanned.notes) == (loaded.sha256, loaded.num_lines, loaded.notes)
    assert (scanned.problems, scanned.problem_counts) == (loaded.problems, loaded.problem_counts)
    assert list(scanned.lines) == [row.line for row in loaded.examples]
    assert list(scanned.duplicates()) == [(4, 1), (5, 2), (6, 3), (10, 1), (11, 2), (12, 3)]


ODD_LINES = st.sampled_from(
    [
        b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"messages":[]}',
        b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","content":"c"}]}',
        b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"id":99999999999999999999}',
        b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"id":7,"score":null}',
        b'{"messages":[{"role":"user","content":" "},{"role":"assistant","content":"b"}]}',
        b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"\\"\\\\"}],"weight":0}',
        b'{"messages":[{"role":"user","content":"a"},{"role":"system","content":"b"}]}',
        b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"},{"role":"assistant","content":"b"}]}',
        b'{"messages":[{"role":"user","content":"\xed\xa0\x80"},{"role":"assistant","content":"b"}]}',
        b'{"messages":[{"role":"user","content":"a\tb"},{"role":"assistant","content":"b"}]}',
        b'{"messages":[]}',
        b'{"messages":[{"role":"tool","content":"a"},{"role":"assistant","content":"b"}],"chosen":1,"rejected":2}',
        b"[]",
        b"\xff",
        json.dumps(PAIRS[0]).encode(),
        JSONL.split(b"\n")[0],
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ODD_LINES, max_size=8), st.sampled_from([0, 100]))
def test_a_scan_judges_every_line_as_load_does(tmp_path: Path, lines: list[bytes], max_misses: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL + b"\n".join(lines))
    with mock.patch("tunesmith.data.read.scan.MAX_MISSES", max_misses):
        scanned, loaded = scan(path), load(path)
    assert (list(scanned.lines), scanned.problems) == ([row.line for row in loaded.examples], loaded.problems)
    assert scanned.notes == loaded.notes
    same = {row.line: (row.example.messages, row.example.rejected) for row in loaded.examples}
    firsts: dict[Any, int] = {}
    expected = [(line, first) for line, key in same.items() if (first := firsts.setdefault(key, line)) != line]
    contents = [(line, first) for line, first in scanned.duplicates() if same[line] == same[first]]
    assert contents == expected
