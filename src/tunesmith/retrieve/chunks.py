"""A document as passages: split at headings, then paragraphs, then sentences, then words.

Not here: reading files (documents), what is searched (terms, encoder). No passage crosses a heading of any level.
Called by index.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.retrieve.section import Document

MAX_WORD_CHARS = 40  # a longer run without a space (a link, a key) counts as several words
# Scripts without spaces: each character is a word here.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]{{1,{MAX_WORD_CHARS}}}")
PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n\s*")
# A run of marks is looked at from its first: a page of dots would take minutes otherwise.
SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+\s+|(?<![。！？])[。！？]++[」』”）]*\s*|\n\s*")

Span = tuple[int, int]  # characters of a section's text: from, to


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage before it is indexed: characters `start` to `end` of one section, without spaces at its ends."""

    document: str
    number: int  # in its document, from 0
    titles: tuple[str, ...]
    text: str
    start: int
    page: int | None


def split_document(document: Document, *, words: int, overlap: int) -> Iterator[Chunk]:
    """Passages of at most `words` words, and up to `overlap` more that repeat whole sentences of the one before.

    Together they hold all text of the document but spaces, in order. Raises ValueError unless 0 <= overlap < words.
    """
    if not 0 <= overlap < words:
        raise ValueError(f"overlap must be at least 0 and below words, not {overlap} and {words}")
    number = 0
    for section in document.sections:
        for start, end in _passages(section.text, words, overlap):
            page = section.page_at(start)
            yield Chunk(document.id, number, section.titles, section.text[start:end], start, page)
            number += 1


def count_words(text: str) -> int:
    return sum(1 for _ in WORD.finditer(text))


def _passages(text: str, words: int, overlap: int) -> Iterator[Span]:
    """Units are put together while they fit; a new passage goes back over as many whole units as `overlap` allows."""
    units = [(start, end, count_words(text[start:end])) for start, end in _units(text, words)]
    first = 0
    while first < len(units):
        last, size = first, 0
        while last < len(units) and size + units[last][2] <= words:
            size += units[last][2]
            last += 1
        start, repeated = first, 0
        while start > 0 and repeated + units[start - 1][2] <= overlap:
            start -= 1
            repeated += units[start][2]
        yield units[start][0], units[last - 1][1]
        first = last


def _units(text: str, words: int) -> Iterator[Span]:
    """Paragraphs that fit, else their sentences, else runs of words; each of at most `words` words and not empty."""
    for paragraph in _pieces(text, (0, len(text)), PARAGRAPH_END):
        if count_words(text[slice(*paragraph)]) <= words:
            yield paragraph
            continue
        for sentence in _pieces(text, paragraph, SENTENCE_END):
            found = list(WORD.finditer(text, *sentence))
            for first in range(0, len(found), words):
                yield found[first].start(), found[min(first + words, len(found)) - 1].end()


def _pieces(text: str, span: Span, end: re.Pattern[str]) -> Iterator[Span]:
    """What stands between the ends, each end with what it closes, spaces at both sides left out."""
    start = span[0]
    for match in [*end.finditer(text, *span), None]:
        stop = match.end() if match else span[1]
        piece = text[start:stop]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        start = stop
