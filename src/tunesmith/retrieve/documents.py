"""Files as documents: which files of a folder are read, the limits they are read under, and what is wrong with them.

Not here: the structure of Markdown and HTML (markup) and of PDF (pdf), splitting (chunks). Files are untrusted: nothing
in them is run or fetched, and sizes are limited.
Called by index; `read_documents` is pure, so a file with the same bytes gives the same documents.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.chat import Example, parse_row, shape_of
from tunesmith.errors import DataError, InputError, Problem
from tunesmith.retrieve.section import Document, Section

MIB = 1 << 20
KINDS = {
    ".md": "markdown", ".markdown": "markdown", ".txt": "text", ".text": "text", ".rst": "text",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf", ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
MAX_BYTES = {"markdown": 50 * MIB, "text": 50 * MIB, "html": 20 * MIB, "pdf": 200 * MIB, "jsonl": 1024 * MIB}
ID_KEYS = ("id", "doc_id", "_id", "document_id", "docid")
TEXT_KEYS = ("text", "content", "contents", "body")
MAX_LINE_BYTES = 20 * MIB


@dataclass(frozen=True, slots=True)
class Listing:
    """Files to read by their name below the root, sorted, and how many of which other kinds were left alone."""

    files: dict[str, Path]
    others: Counter[str] = field(default_factory=Counter)


def list_files(root: Path, *, leave_out: Path | None = None) -> Listing:
    """The readable files of a folder, or the one file. Hidden files and folders, and `leave_out`, are passed over.

    Raises InputError: nothing is there, or nothing of a kind that can be read.
    """
    kinds = "Markdown, text, HTML, PDF and JSONL"
    if root.is_file():
        if root.suffix.lower() not in KINDS:
            raise InputError(f"{root} is of no kind that can be indexed.", f"{kinds} can, by the file's ending.")
        return Listing({root.name: root})
    if not root.is_dir():
        raise InputError(f"{root} does not exist.", "Give a file, or a folder of files.")
    files, others = {}, Counter[str]()
    apart = leave_out.resolve() if leave_out else None
    for folder, names, here in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and Path(folder, name).resolve() != apart]
        for name in here:
            path = Path(folder, name)
            if path.suffix.lower() in KINDS and not name.startswith("."):
                files[path.relative_to(root).as_posix()] = path
            else:
                others[path.suffix.lower() or name] += 1
    if not files:
        raise InputError(f"{root} holds no file that can be indexed.", f"{kinds} can, by the file's ending.")
    return Listing(dict(sorted(files.items())), others)


def read_documents(path: Path, name: str) -> list[Document]:
    """The documents of one file, with unique ids: its `name`, or what its JSONL rows say.

    Raises DataError: too large, not readable, or without text; each problem with its line or page.
    """
    kind = KINDS[path.suffix.lower()]
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_BYTES[kind]:
            what = f"{size_bytes / MIB:.0f} MiB; a {kind} file may have {MAX_BYTES[kind] // MIB}."
            raise DataError([Problem(name, None, None, what, "Split it.", "too_large")])
        if kind == "jsonl":
            return _read_rows(path, name)
        sections = _read_sections(path, name, kind)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}."
        raise DataError([Problem(name, None, None, what, "Check its permissions.", "unreadable")]) from error
    if not any(section.text.strip() for section in sections):
        todo = "Make its text readable by OCR, or leave it out." if kind == "pdf" else "Leave it out."
        raise DataError([Problem(name, None, None, "holds no text.", todo, "no_text")])
    return [Document(name, tuple(sections))]


def _read_sections(path: Path, name: str, kind: str) -> list[Section]:
    if kind == "pdf":
        from tunesmith.retrieve.pdf import read_pdf

        return read_pdf(path, name)
    from tunesmith.retrieve.markup import decode_html, html_sections, markdown_sections

    content = path.read_bytes()
    if kind == "html":
        return html_sections(decode_html(content))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        what = f"byte 0x{content[error.start]:02x} is not UTF-8."
        raise DataError([Problem(name, line, None, what, "Save the file as UTF-8.", "invalid_utf8")]) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return markdown_sections(text) if kind == "markdown" else [Section((), text)]


def _read_rows(path: Path, name: str) -> list[Document]:
    documents: dict[str, Document] = {}
    problems: list[Problem] = []
    with path.open("rb") as file:
        for line, content in enumerate(_lines(file), start=1):
            if not content.strip():
                continue
            found = _row(content, f"{name}:{line}")
            if isinstance(found, Document) and found.id in documents:
                found = (f"the id {found.id!r} stands in this file twice.", "Give each document its own id.")
            if isinstance(found, Document):
                documents[found.id] = found
            else:
                problems.append(Problem(name, line, None, *found))
    if not documents and not problems:
        problems.append(Problem(name, None, None, "holds no row.", "Leave it out.", "no_text"))
    if problems:
        raise DataError(problems)
    return list(documents.values())


def _lines(file: Any) -> Iterator[bytes]:
    """Lines, none read further than MAX_LINE_BYTES; the rest of a longer one is a line that cannot be read."""
    while line := file.readline(MAX_LINE_BYTES):
        yield line


def _row(content: bytes, place: str) -> Document | tuple[str, str]:
    """A row as a document or training example, or what is wrong with it and what to do."""
    try:
        row = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"no JSON that can be read ({error}).", "Write one JSON object per line."
    if not isinstance(row, dict):
        return "the line holds no JSON object.", "Write one JSON object per line."
    if shape_of(row) not in (None, "text"):
        return _example(row, place)
    text = _first(row, TEXT_KEYS)
    if not isinstance(text, str) or not text.strip():
        keys = ", ".join(TEXT_KEYS)
        return f"no text under any of {keys}; its keys are {', '.join(row) or 'none'}.", "Name the text `text`."
    title = row.get("title")
    titles = (title.replace("_", " ").strip(),) if isinstance(title, str) and title.strip() else ()
    id = _first(row, ID_KEYS)
    return Document(place if id is None else str(id), (Section(titles, text),))


def _first(row: dict[str, Any], keys: Iterable[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _example(row: dict[str, Any], place: str) -> Document | tuple[str, str]:
    example, problems = parse_row(row)
    if example is None:
        return problems[0].what, problems[0].todo
    question, answer = question_of(example), example.answer
    if not question.strip() or not answer.strip():
        return "the example has no question or no answer.", "Leave the row out."
    return Document(place, (Section((), answer),), question)


def question_of(example: Example) -> str:
    """What the last user turn asks: by this, examples are near to each other."""
    return next((turn.content or "" for turn in reversed(example.prompt) if turn.role == "user"), "")
