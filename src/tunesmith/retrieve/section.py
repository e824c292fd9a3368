"""What was read: a document, and its sections under their headings.

Not here: reading it (documents, markup, pdf), splitting it into passages (chunks). Used by all of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """Text under one heading; `titles` are the headings above it, the top one first."""

    titles: tuple[str, ...]
    text: str
    pages: tuple[tuple[int, int], ...] = ()  # of a PDF: (character where it begins, page), ascending

    def page_at(self, position: int) -> int | None:
        return next((page for start, page in reversed(self.pages) if start <= position), None)


@dataclass(frozen=True, slots=True)
class Document:
    """One thing a question can name. Of a training example the `question` is searched and the text is its answer."""

    id: str
    sections: tuple[Section, ...]
    question: str = ""
