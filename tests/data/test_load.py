"""Every kind of bad file gets its own message with line and column, and nothing but the error tree is raised."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.chat import parse_row
from tunesmith.data.ledger import check_conservation, ledger_of
from tunesmith.data.load import MAX_KEPT_PROBLEMS, load, load_examples
from tunesmith.errors import DataError

GOOD = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}'
PAIR = b'{"prompt":"Hi","completion":"Hello"}'


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    return path


def row(**turn: object) -> bytes:
    answer = {"role": "assistant", "content": "Hello"} | turn
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}, answer]}, separators=(",", ":")).encode()


def column_of(line: bytes, needle: bytes) -> int:
    return line.index(needle) + 1


WHOLE_FILE = {
    "empty": (b"", "empty_file", "empty"),
    "only blank lines": (b"\n \n\r\n", "empty_file", "only blank lines"),
    "gzip within gzip": (gzip.compress(gzip.compress(GOOD)), "not_jsonl", "gunzip"),
    "gzip of zip": (gzip.compress(b"PK\x03\x04rest"), "not_jsonl", "zip"),
    "half a gzip": (gzip.compress(GOOD)[:-9], "unreadable_file", "cut off"),
    "zip": (b"PK\x03\x04rest", "not_jsonl", "zip"),
    "half a parquet": (b"PAR1\x15\x04\x15", "unreadable_file", "Parquet"),
    "tar": (b"name".ljust(257, b"\0") + b"ustar\0" + b"\0" * 100, "not_jsonl", "tar"),
    "html": (b"<!DOCTYPE html>\n<html>", "not_jsonl", "HTML"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not_jsonl", "git lfs pull"),
    "csv": (b"text,label\nHi,greeting\n", "not_jsonl", "CSV"),
    "quoted csv": (b'"text","label"\n"Hi","greeting"\n', "not_jsonl", "CSV"),
    "utf-16": (GOOD.decode().encode("utf-16"), "invalid_utf8", "UTF-16"),
    "utf-16 without mark": (GOOD.decode().encode("utf-16-be"), "invalid_utf8", "UTF-16"),
    "binary": (b"\x7fELF" + bytes(200), "not_jsonl", "binary"),
    "an empty array": (b"[ ]", "empty_file", "no rows"),
    "pretty-printed": (json.dumps(json.loads(GOOD), indent=2).encode(), "broken_json", "one object per line"),
}


@pytest.mark.parametrize("kind", WHOLE_FILE)
def test_a_file_of_another_kind_gives_one_problem(tmp_path: Path, kind: str) -> None:
    content, issue, word = WHOLE_FILE[kind]
    loaded = load(write(tmp_path, content))
    assert [problem.issue for problem in loaded.problems] == [issue]
    assert word in str(loaded.problems[0])
    assert loaded.examples == []


DEEP = b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NOT_SO_DEEP = b'{"prompt":"Hi","completion":"Hello","x":' + b"[" * 150 + b"]" * 150 + b"}"
TWICE = row().replace(b'"content":"Hello"', b'"role":"user"')
BAD_LINES = {
    "cut off": (GOOD[:40], "broken_json", None, "ends in the middle"),
    "no closing bracket": (GOOD[:-1], "broken_json", len(GOOD), "ends in the middle"),
    "two objects": (GOOD + GOOD, "broken_json", len(GOOD) + 1, "several JSON objects"),
    "comma after": (GOOD + b",", "broken_json", len(GOOD) + 1, "comma"),
    "comma inside": (b'{"prompt":"Hi","completion":"Hello",}', "broken_json", None, "comma"),
    "single quotes": (b"{'prompt': 'Hi'}", "broken_json", 2, "json.dumps"),
    "python word": (b'{"prompt":"Hi","completion":None}', "broken_json", 29, "None is Python"),
    "comment": (GOOD + b" // ok", "broken_json", len(GOOD) + 2, "comment"),
    "comment line": (b"# rows", "broken_json", 1, "comment"),
    "unescaped quote": (b'{"prompt":"a "b" c"}', "broken_json", 15, "not escaped"),
    "bad escape": (rb'{"prompt":"\d"}', "broken_json", 12, "backslash"),
    "control character": (b'{"prompt":"a\tb"}', "broken_json", 13, "U+0009"),
    "NUL": (b'{"prompt":"a\0b"}', "broken_json", 13, "U+0000"),
    "bare CR": (GOOD + b"\r" + GOOD, "broken_json", len(GOOD) + 2, "bare CR"),
    "words": (b"hello", "broken_json", 1, "starts with 'h'"),
    "NaN": (b'{"prompt":"NaN","completion":"b","x":NaN}', "broken_json", 38, "NaN"),
    "Infinity": (b'{"prompt":"a","completion":"b","x":-Infinity}', "broken_json", 36, "-Infinity"),
    "1e400": (b'{"prompt":"1e400","completion":"b","x":[1e400]}', "broken_json", 41, "1e400"),
    "ten thousand digits": (b'{"prompt":"a","x":' + b"9" * 10_000 + b"}", "broken_json", 19, "too large"),
    "key twice": (b'{"prompt":"a","completion":"b","prompt":"c"}', "broken_json", 32, "'prompt'"),
    "inner key twice": (TWICE, "broken_json", TWICE.rindex(b'"role"') + 1, "'role'"),
    "deep": (DEEP, "broken_json", 110, "nested"),
    "a bit too deep": (NOT_SO_DEEP, "broken_json", 140, "nested"),
    "list": (b"[1]", "not_object", 1, "a list"),
    "number": (b" 3", "not_object", 2, "a number"),
    "null": (b"null", "not_object", 1, "null"),
    "array of rows": (b"[" + GOOD + b"]", "not_object", 1, "one JSON object per line"),
    "other keys": (b'{"text":"a"}', "missing_messages", 1, "'text'"),
    "messages a text": (b'{"messages":"a"}', "missing_messages", 1, "a text"),
    "no messages in it": (b'{"messages":[]}', "empty_messages", 1, "empty"),
    "no answer": (b'{"messages":[{"role":"user","content":"a"}]}', "missing_assistant", 1, "no assistant turn"),
    "no completion": (b'{"prompt":"a"}', "missing_assistant", 1, "'completion'"),
    "unknown role": (row(role="bot"), "unknown_role", column_of(row(role="bot"), b'"bot"'), "'bot'"),
    "role null": (row(role=None), "unknown_role", 1, "no 'role'"),
    "empty answer": (row(content=""), "empty_content", column_of(row(content=""), b'""'), "empty"),
    "blank answer": (row(content=" \n"), "empty_content", column_of(row(content=" \n"), b'" \\n"'), "empty"),
    "null answer": (row(content=None), "null_content", column_of(row(content=None), b"null"), "null"),
    "number answer": (row(content=12), "null_content", column_of(row(content=12), b"12"), "a number"),
    "parts answer": (row(content=[]), "null_content", column_of(row(content=[]), b"[]"), "a list"),
    "lone surrogate": (row(content="\ud800"), "invalid_utf8", column_of(row(content="\ud800"), b"\\ud800"), "half"),
    "surrogate beside": (PAIR[:-1] + b',"x":"\\uD800"}', "invalid_utf8", 42, "half"),
    "huge weight": (PAIR[:-1] + b',"weight":1' + b"0" * 400 + b"}", "bad_order", 1, "weight"),
    "user last": (GOOD[:-2] + b',{"role":"user","content":"a"}]}', "bad_order", 1, "last turn"),
    "latin-1": ('{"prompt":"é café"'.encode() + b'\xe9"}', "invalid_utf8", 19, "0xe9"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_gives_its_issue_with_line_and_column(tmp_path: Path, kind: str) -> None:
    bad, issue, column, word = BAD_LINES[kind]
    loaded = load(write(tmp_path, GOOD + b"\n\n" + bad + b"\n" + PAIR + b"\n"))
    assert [(problem.issue, problem.line) for problem in loaded.problems] == [(issue, 3)]
    problem = loaded.problems[0]
    assert word in f"{problem.what} {problem.todo}"
    assert len(str(problem)) < 500
    assert column is None or problem.column == column
    assert [found.line for found in loaded.examples] == [1, 4]


def test_noise_is_not_taken_for_a_table(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, b"\x9f\x01,\xd3;\n\xff\n"))
    assert [(problem.issue, problem.line) for problem in loaded.problems] == [("invalid_utf8", 1), ("invalid_utf8", 2)]


def test_all_problems_of_a_row_are_listed_in_order(tmp_path: Path) -> None:
    bad = b'{"messages":[{"role":"bot","content":"a"},{"role":"bot","content":"b"},{"role":"user","content":null}]}'
    problems = load(write(tmp_path, bad)).problems
    columns = [bad.index(b'"bot"') + 1, bad.rindex(b'"bot"') + 1, bad.index(b"null") + 1]
    assert [problem.column for problem in problems] == columns


def test_byte_order_mark_crlf_and_blank_lines_are_accepted_with_one_note_each(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n" + PAIR + b"\r\n\n" + GOOD)
    loaded = load_examples(path)
    assert [row.line for row in loaded.examples] == [1, 3, 5]
    assert [(note.issue, note.line) for note in loaded.notes] == [
        ("bom", 1),
        ("crlf", 1),
        ("blank_line", 2),
        ("mixed_format", 3),
    ]
    assert "3 of 5 lines" in loaded.notes[1].what
    assert loaded.lines_by_note["blank_line"] == [2, 4]


def test_the_column_does_not_count_the_byte_order_mark(tmp_path: Path) -> None:
    assert load(write(tmp_path, b"\xef\xbb\xbf{'a': 1}")).problems[0].column == 2


def test_a_missing_file_names_the_one_that_was_meant(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    problem = load(tmp_path / "trian.jsonl").problems[0]
    assert problem.issue == "unreadable_file"
    assert "train.jsonl" in problem.todo


@pytest.mark.parametrize("name", [".", "no/such/dir.jsonl", "a\0b"])
def test_a_path_that_is_no_file_is_a_problem_not_a_crash(tmp_path: Path, name: str) -> None:
    assert [problem.issue for problem in load(tmp_path / name).problems] == ["unreadable_file"]


def test_the_strict_entry_shows_twenty_problems_and_the_total(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_examples(write(tmp_path, b"{}\n" * 50))
    assert caught.value.total == 50
    assert str(caught.value).count("\n") == 21
    assert "and 30 more" in str(caught.value)


def test_millions_of_bad_lines_are_counted_but_not_all_kept(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, b"x\n" * (MAX_KEPT_PROBLEMS + 5)))
    assert len(loaded.problems) == MAX_KEPT_PROBLEMS
    assert loaded.num_problems == MAX_KEPT_PROBLEMS + 5


BAD_PIECES = [bad for bad, *_ in BAD_LINES.values() if len(bad) < 5000]
LINES = st.one_of(
    st.sampled_from([GOOD, PAIR, b"", b" ", b"\xef\xbb\xbf" + GOOD, GOOD + b"\r", *BAD_PIECES]),
    st.binary(max_size=30),
    st.text(alphabet='{}[]":,\\ue0tn', max_size=20).map(str.encode),
    st.builds(lambda text, cut: text[:cut], st.just(GOOD), st.integers(0, len(GOOD))),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=6), end=st.sampled_from([b"", b"\n"]))
def test_load_never_raises_and_accounts_for_every_line(tmp_path: Path, lines: list[bytes], end: bytes) -> None:
    content = b"\n".join(lines) + end
    loaded = load(write(tmp_path, content))
    if loaded.num_lines == 0:
        assert len(loaded.problems) == 1
        return
    if loaded.unit == "line":
        assert loaded.num_lines == content.count(b"\n") + (not content.endswith(b"\n"))
    check_conservation(ledger_of(loaded), loaded.num_lines)
    for found in loaded.examples:
        assert parse_row(json.loads(found.example.to_json())) == (found.example, [])
