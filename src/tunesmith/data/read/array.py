"""One JSON array as a stream of its elements, each with the place it starts at; nothing but one element is held.

Not here: decoding an element (decode), the files (streams).
Called by data.load for a file that starts with a bracket and an object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tunesmith.data.read.decode import UNSURE, Fault, decode_fast

TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)
READ_BYTES = 1 << 20
JSON_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Element:
    """An element's own bytes, and the physical line and column (in bytes of that line) of its first one, 1-based."""

    raw: bytes
    line: int
    column: int


def is_array(head: bytes) -> bool:
    """Whether a file starts like one array of rows, and not like lines of which each is a list."""
    if re.match(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:[{\]]|$)", head) is None:
        return False
    line, _, rest = head.lstrip().partition(b"\n")
    return not rest.strip() or decode_fast(line) is UNSURE


def elements(stream: BinaryIO, *, max_bytes: int) -> Iterator[Element | Fault]:
    """The elements in order. Ends with a Fault, whose row is the last given, if the array itself is broken."""
    return _Splitter(stream, max_bytes).run()


class _Splitter:
    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self.stream, self.max_bytes = stream, max_bytes
        self.buffer = b""  # from the start of the present element, or later, on
        self.position = 0  # where the next token is looked for
        self.start = 0  # of the present element
        self.line, self.column = 1, 1  # of `start`
        self.depth = 0

    def run(self) -> Iterator[Element | Fault]:
        empty = True  # nothing but the opening bracket was seen
        while (match := self._token()) is not None:
            token, end = match.group()[:1], match.end()
            if self.depth == 0:  # the opening bracket of the array
                self._begin(end)
            elif self.depth == 1 and token in b",]":
                raw = self.buffer[self.start : match.start()]
                if not (empty and token == b"]" and not raw.strip(JSON_SPACE)):
                    yield self._element(raw)
                empty = False
                self._begin(end)
            self.depth += (token in b"[{") - (token in b"]}")
            self.position = end
            if self.depth == 0:
                if fault := self._after():
                    yield fault
                return
        rest = self.buffer[self.start :]
        if rest.strip(JSON_SPACE) and len(rest) <= self.max_bytes:
            yield self._element(rest)  # what is wrong in it, such as a quote too many, may be why there is no end
        what = "a row is too long" if len(rest) > self.max_bytes else "the file ends before the array does"
        yield Fault("broken_json", f"{what} (line {self.line}).", "Complete it; it may have been cut off.")

    def _token(self) -> re.Match[bytes] | None:
        """The next token that is no string, reading on as long as there is none whole; None at the end."""
        while True:
            match = TOKEN.search(self.buffer, self.position)
            if match and match.group()[:1] != b'"':
                return match
            if match and match.group(1):
                self.position = match.end()
                continue
            self.position = match.start() if match else len(self.buffer)
            if len(self.buffer) - self.start > self.max_bytes or not self._read():
                return None

    def _read(self) -> bool:
        kept = self.buffer[self.start :]
        more = self.stream.read(max(READ_BYTES, len(kept)))  # doubled while an element goes on: linear, not quadratic
        self.position -= self.start
        self.start, self.buffer = 0, kept + more
        return bool(more)

    def _begin(self, place: int) -> None:
        """The next element starts at `place`."""
        passed = self.buffer[self.start : place]
        breaks = passed.count(b"\n")
        self.column = len(passed) - passed.rfind(b"\n") if breaks else self.column + len(passed)
        self.line += breaks
        self.start = place

    def _element(self, raw: bytes) -> Element:
        blank = len(raw) - len(raw.lstrip(JSON_SPACE))
        self._begin(self.start + blank)
        return Element(raw.strip(JSON_SPACE), self.line, self.column)

    def _after(self) -> Fault | None:
        while not (rest := self.buffer[self.start :].strip(JSON_SPACE)):
            self._begin(len(self.buffer))
            self.position = self.start
            if not self._read():
                return None
        what = f"text follows the array: {rest[:20].decode(errors='replace')!r}."
        return Fault("broken_json", what, "One file holds one array, or one object on each line.")
