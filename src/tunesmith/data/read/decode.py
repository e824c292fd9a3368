"""One line of text to one JSON value, stricter than Python's json: each fault with its column and what to do.

Not here: files and encodings (load), what the value must look like (chat).
Called by data.load for every line that is not blank: first `decode_fast`, and `decode_line` when that is not sure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

MAX_DEPTH = 100
OBJECT_TODO = "Write one JSON object per line."
COMMENTS = ("//", "/*", "#")
PYTHON_WORDS = ("None", "True", "False")
TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|-?Infinity|NaN|-?\d[\d.eE+-]*', re.DOTALL)

NOT_SPACE = re.compile(r"\S")
COLON = re.compile(r"[ \t\r]*:")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line or file, before it has a file name: `column` and `line` are 1-based or None."""

    issue: str
    what: str
    todo: str
    column: int | None = None
    line: int | None = None


class UnreadableError(Exception):
    """What makes a whole file unusable. Raised by the modules that open files, caught by data.read.source."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


def utf8_fault(body: bytes, start: int) -> Fault:
    column = len(body[:start].decode("utf-8")) + 1
    what = f"byte 0x{body[start]:02x} is not UTF-8."
    return Fault("invalid_utf8", what, "Save the file as UTF-8 (it may be Latin-1 or Windows-1252 here).", column)


UNSURE = object()


def decode_fast(raw: bytes) -> Any:
    """The value of a line of UTF-8, the same that `decode_line` gives, or UNSURE: then that one must look.

    orjson lets three things pass that are refused or read otherwise here: a key given twice (of which it keeps one, so
    strings are counted in the text and in the value), an integer beyond 64 bits (a float then), and depth.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return UNSURE
    return value if unescaped_quotes(raw) == 2 * _num_strings(value) else UNSURE


def unescaped_quotes(raw: bytes) -> int | None:
    """The quotes that begin or end the texts and keys of a JSON value; None when telling them takes a parser."""
    if b'\\"' not in raw:
        return raw.count(b'"')
    return None if b'\\\\"' in raw else raw.count(b'"') - raw.count(b'\\"')


def _num_strings(value: Any) -> int:
    """Texts and keys in a value; -1 when it is deep or large enough to be looked at, or may have had an integer beyond
    64 bits."""
    total = 0
    containers = [[value]]
    for container in containers:  # grows while it is gone through
        if len(containers) > MAX_DEPTH:
            return -1
        for inner in container:
            kind = type(inner)
            if kind is str:
                total += 1
            elif kind is list:
                containers.append(inner)
            elif kind is dict:
                total += len(inner)
                containers.append(inner.values())
            elif kind is float and not -(2.0**63) < inner < 2.0**63:
                return -1
    return total


class _Refused(Exception):
    """Raised inside the decoder's hooks for what Python's json would let through."""


def decode_line(text: str) -> tuple[Any, Fault | None]:
    """Decode one line. Refused beside broken JSON: NaN and Infinity, numbers beyond a double, keys given twice,
    and nesting deeper than MAX_DEPTH. Never raises on bad data."""
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        return None, _syntax_fault(text, error.pos, message=error.msg)
    except RecursionError:
        return None, _depth_fault(text) or Fault("broken_json", "the JSON is nested too deep.", "Flatten it.", 1)
    except _Refused as error:
        return None, _located(text, str(error))
    except ValueError:  # Python's limit on the digits of an integer
        return None, _located(text, "number")
    if text.count("{") + text.count("[") > MAX_DEPTH and (fault := _depth_fault(text)):
        return None, fault
    return value, None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("key")
    return found


def _constant(name: str) -> Any:
    raise _Refused("constant")


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Refused("number")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def _located(text: str, reason: str) -> Fault:
    """Find again, token by token, what a hook refused, so that the column is right."""
    if reason == "key":
        key, column = _second_key(text)
        return Fault("broken_json", f"the key {key!r} stands twice in one object.", "Keep one of them.", column)
    for match in _outside_strings(text):
        token = match.group()
        if reason == "constant" and token.endswith(("NaN", "Infinity")):
            return Fault("broken_json", f"{token} is not JSON.", "Write a number or null.", match.start() + 1)
        if reason == "number" and (len(token) > 4000 or _is_infinite(token)):
            shown = token if len(token) <= 20 else f"{token[:12]}... ({len(token)} characters)"
            return Fault("broken_json", f"the number {shown} is too large.", "Write it as a text.", match.start() + 1)
    return Fault("broken_json", "a number in this line is too large.", "Write it as a text.", 1)


def _outside_strings(text: str) -> Iterator[re.Match[str]]:
    return (match for match in TOKEN.finditer(text) if match.group()[0] not in '"{}[]')


def _is_infinite(token: str) -> bool:
    try:
        return float(token) in (float("inf"), float("-inf"))
    except ValueError:
        return False


def _second_key(text: str) -> tuple[str, int]:
    """The first key that its own object already has, and its column."""
    scopes: list[set[str]] = []
    for match in TOKEN.finditer(text):
        token = match.group()
        if token in "{[":
            scopes.append(set())
        elif token in "}]":
            scopes.pop()
        elif token[0] == '"' and COLON.match(text, match.end()):
            key = json.loads(token)
            if key in scopes[-1]:
                return key, match.start() + 1
            scopes[-1].add(key)
    return "?", 1


def _depth_fault(text: str) -> Fault | None:
    depth = 0
    for match in TOKEN.finditer(text):
        token = match.group()
        depth += (token in "{[") - (token in "}]")
        if depth > MAX_DEPTH:
            what = f"the JSON is nested more than {MAX_DEPTH} levels deep."
            return Fault("broken_json", what, "Flatten it.", match.start() + 1)
    return None


def _syntax_fault(text: str, pos: int, *, message: str) -> Fault:
    if message == "Extra data":
        return _extra_fault(text, pos)
    what, todo = _syntax_words(text, pos, message=message)
    return Fault("broken_json", what, todo, pos + 1)


def _extra_fault(text: str, pos: int) -> Fault:
    rest = text[pos : pos + 100]
    if text.find("\r", 0, pos) >= 0:
        what = "lines end with a bare CR (old Mac), so several rows stand on one line."
        todo = "Save the file with LF line ends."
    elif rest[0] in "{[":
        what, todo = "several JSON objects stand on one line.", "Put each object on its own line."
    elif rest.startswith(COMMENTS):
        what, todo = "a comment follows the object.", "Take it out: JSON has no comments."
    elif rest[0] == ",":
        what, todo = "a comma follows the object.", "Take the comma out: JSONL has no commas between rows."
    else:
        what, todo = "there is more text after the JSON value.", OBJECT_TODO
    return Fault("broken_json", what, todo, pos + 1)


def _syntax_words(text: str, pos: int, *, message: str) -> tuple[str, str]:
    """Words for the mistakes people make, from the character the decoder stopped at."""
    rest = text[pos : pos + 100]  # enough to see what it is; a line may be 60 MB
    before = text[max(0, pos - 100) : pos].rstrip()
    if NOT_SPACE.search(text, pos) is None or message.startswith("Unterminated string"):
        what = "the line ends in the middle of the JSON object."
        return what, "Complete the object on this line; the file may have been cut off here."
    if message.startswith("Invalid control character"):
        what = f"a raw control character (U+{ord(rest[0]):04X}) stands inside a text."
        return what, "Escape it, as in \\n, \\t or \\u0000."
    if message.startswith("Invalid \\"):
        return f"a backslash is followed by {rest[1:2]!r}, which JSON does not know.", "Write a backslash as \\\\."
    if rest[0] == "'":
        return "texts stand in single quotes.", "Use double quotes (in Python: json.dumps(row), not str(row))."
    if rest.startswith(PYTHON_WORDS):
        word = next(name for name in PYTHON_WORDS if rest.startswith(name))
        return f"{word} is Python, not JSON.", "Use null, true or false (in Python: json.dumps(row))."
    if rest[0] == "," or (rest[0] in "}]" and before.endswith(",")):
        return "a comma stands before the closing bracket, or twice.", "Take the comma out."
    if rest.startswith(COMMENTS):
        return "a comment stands in the JSON.", "Take it out: JSON has no comments."
    if message.startswith("Expecting ',' delimiter") and before.endswith('"'):
        return "a comma is missing here, or a double quote inside the text before is not escaped.", 'Write it as \\".'
    if pos == 0:
        return f"the line starts with {rest[0]!r}, so it is no JSON object.", OBJECT_TODO
    return f"broken JSON: {message[0].lower()}{message[1:]}, found {rest[0]!r}.", "Fix the JSON at this column."
