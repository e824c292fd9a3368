"""Faults that concern a whole file, seen in its first bytes: another format under the name .jsonl.

Not here: faults of one line (decode) or of one row (chat). Nothing is read from disk.
Called by data.load before it goes through the lines.
"""

from __future__ import annotations

import json

from tunesmith.data.read.decode import Fault

JSONL_TODO = "Give a JSONL file: one JSON object on each line."
MAGIC = (
    (b"\x1f\x8b", "packed twice with gzip", "Unpack it once: gunzip FILE."),
    (b"\x28\xb5\x2f\xfd", "packed twice with zstandard", "Unpack it once: unzstd FILE."),
    (b"PK\x03\x04", "a zip file (or an Excel workbook)", "Unpack it first, or export the sheet as CSV."),
    (b"PAR1", "a packed Parquet file", "Unpack it first."),
    (b"ARROW1", "a packed Arrow file", "Unpack it first."),
    (b"BZh", "a bzip2 file", "Unpack it first: bunzip2 FILE."),
    (b"\xfd7zXZ", "an xz file", "Unpack it first: unxz FILE."),
    (b"%PDF", "a PDF file", JSONL_TODO),
    (b"SQLite format 3", "an SQLite database", "Export the rows as JSONL first."),
    (b"version https://git-lfs", "a git-LFS pointer, not the data itself", "Fetch the data first: git lfs pull."),
)
UTF16_TODO = "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > OUT."


def sniff(head: bytes, *, whole: bool) -> Fault | None:
    """The one fault that makes the whole file unusable, or None when its lines should be read.

    `head` is the start of the file (some kilobytes), `whole` says that there is nothing after it.
    """
    if not head:
        return Fault("empty_file", "the file is empty.", JSONL_TODO)
    return binary_fault(head) or _text_fault(head, whole=whole)


def binary_fault(head: bytes) -> Fault | None:
    """What is no text at all, for a table as for lines."""
    for magic, name, todo in MAGIC:
        if head.startswith(magic):
            return Fault("not_jsonl", f"this is {name}.", todo)
    if head[257:262] == b"ustar":
        return Fault("not_jsonl", "this is a tar archive.", "Unpack it first: tar -xf FILE.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")) or _looks_like_utf16(head):
        return Fault("invalid_utf8", "the file is UTF-16 (or UTF-32), not UTF-8.", UTF16_TODO)
    if head.count(0) * 10 > len(head):
        return Fault("not_jsonl", "this is a binary file (it is full of NUL bytes).", JSONL_TODO)
    return None


def _looks_like_utf16(head: bytes) -> bool:
    """Text in a Latin script has a zero in every other byte, and only there."""
    even, odd = head[0::2], head[1::2]
    few, many = sorted((even.count(0) / max(1, len(even)), odd.count(0) / max(1, len(odd))))
    return len(head) >= 4 and few < 0.05 and many > 0.7


def _text_fault(head: bytes, *, whole: bool) -> Fault | None:
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
    if text.lstrip().lower().startswith(("<!doctype", "<html", "<?xml")):
        what = "this is an HTML or XML page, perhaps an error page saved under this name."
        return Fault("not_jsonl", what, "Download it again.")
    pieces = text.split("\n")
    if not whole:
        pieces.pop()  # cut off by the end of `head`
    numbered = [(number, piece) for number, piece in enumerate(pieces, start=1) if piece.strip()]
    if not numbered:
        return None
    line, first = numbered[0]
    second = numbered[1][1].lstrip() if len(numbered) > 1 else ""
    return _layout_fault(first, second, line=line)


def _layout_fault(first: str, second: str, *, line: int) -> Fault | None:
    """Recognise one big JSON value over many lines, or a table, from the first two lines that are not blank."""
    stripped = first.strip()
    column = len(first) - len(first.lstrip()) + 1
    if _is_json(stripped):
        return None
    goes_on = stripped == "{" or stripped[-1] in "{[,:"
    if stripped[0] == "{" and goes_on and second and second[0] != "{":
        todo = "Write one object per line: jq -c . FILE > OUT."
        return Fault("broken_json", "an object is spread over several lines (pretty-printed).", todo, column, line)
    is_text = all(char.isprintable() or char == "\t" for char in stripped) and "\ufffd" not in stripped
    if (
        is_text
        and stripped[0] not in "{['/#"
        and any(mark in stripped for mark in ",;\t")
        and not second.startswith("{")
    ):
        todo = "Name the file .csv (or .tsv) to read it as one."
        return Fault("not_jsonl", "this looks like a table (CSV), not JSONL.", todo, column, line)
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
