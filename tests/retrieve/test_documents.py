"""Files as documents: what is read, under which id, and how each fault is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.errors import DataError, InputError
from tunesmith.retrieve import documents
from tunesmith.retrieve.documents import list_files, read_documents


def problem_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_documents(path, path.name)
    return str(caught.value.problems[0])


def test_a_folder_gives_its_readable_files_sorted_and_counts_the_others(tmp_path: Path) -> None:
    for name in ("b.md", "a/c.TXT", "a/d.png", ".hidden/e.md", ".f.md", "out/index.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    listing = list_files(tmp_path, leave_out=tmp_path / "out")
    assert list(listing.files) == ["a/c.TXT", "b.md"]
    assert listing.others == {".png": 1, ".md": 1}


def test_what_cannot_be_indexed_is_refused_with_what_can(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    for path in (tmp_path / "a.docx", tmp_path, tmp_path / "none"):
        with pytest.raises(InputError):
            list_files(path)


def test_rows_of_jsonl_are_documents_by_their_id_or_training_examples_by_their_line(tmp_path: Path) -> None:
    rows = [
        {"doc_id": 7, "title": "A_title", "text": "one"},
        {"content": "two"},
        {"prompt": "How long?", "completion": "30 days."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_documents(path, "rows.jsonl")
    assert [(one.id, one.sections[0].titles, one.sections[0].text, one.question) for one in found] == [
        ("7", ("A title",), "one", ""),
        ("rows.jsonl:2", (), "two", ""),
        ("rows.jsonl:3", (), "30 days.", "How long?"),
        ("rows.jsonl:4", (), "Hello.", "Hi"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"', "a.jsonl:2: no JSON"),
        ("a.jsonl", b'{"name": "x"}', "a.jsonl:1: no text under any of text"),
        (
            "a.jsonl",
            b'{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}',
            "a.jsonl:2: the id '1' stands",
        ),
        ("a.jsonl", b'{"messages": []}', "a.jsonl:1"),
        ("a.jsonl", b"\n", "a.jsonl: holds no row"),
        ("a.txt", b"one\n\xff", "a.txt:2: byte 0xff is not UTF-8"),
        ("a.md", b" \n", "a.md: holds no text"),
        ("a.html", b"<script>x</script>", "a.html: holds no text"),
        ("a.pdf", b"no pdf", "a.pdf: is no PDF"),
    ],
)
def test_each_fault_names_its_file_and_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    assert problem_of(tmp_path / name, content).startswith(said)


def test_a_file_above_its_limit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(documents.MAX_BYTES, "text", 3)
    assert "too" not in problem_of(tmp_path / "a.txt", b"four")
    assert "Split it." in problem_of(tmp_path / "a.txt", b"four")
