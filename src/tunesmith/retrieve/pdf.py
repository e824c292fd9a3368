"""The text of a PDF, page by page, in sections by its bookmarks. Nothing in it is run, opened or fetched.

Not here: other files (documents). Scanned pages have no text: that is said, not guessed.
Called by documents.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, InputError, Problem
from tunesmith.retrieve.section import Section

MAX_PAGES = 5_000
MAX_PAGE_CHARS = 1_000_000  # a page of a book has 3,000
MAX_DEPTH = 6  # of bookmarks within bookmarks


def read_pdf(path: Path, name: str) -> list[Section]:
    """Sections from one bookmark to the next, with the page where each character stands.

    Raises DataError naming the page that cannot be read, InputError where pypdf is not installed.
    """
    try:
        import pypdf
    except ImportError as error:
        raise InputError(f"{name}: PDF files need pypdf.", "pip install 'tunesmith[rag]'") from error

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it reports every odd byte of a file as a warning
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise _problem(name, None, "is locked with a password.", "Save it without one, or leave it out.")
        num_pages = len(reader.pages)
    except DataError:
        raise
    except Exception as error:  # pypdf meets made-up files with errors of every kind
        raise _problem(
            name, None, f"is no PDF that can be read ({error}).", "Save it again, or leave it out."
        ) from error
    if num_pages > MAX_PAGES:
        raise _problem(name, None, f"has {num_pages:,} pages; {MAX_PAGES:,} are read at most.", "Split it.")
    texts = [_page_text(reader, number, name) for number in range(num_pages)]
    return _sections(texts, _bookmarks(reader))


def _page_text(reader: Any, number: int, name: str) -> str:
    try:
        text = str(reader.pages[number].extract_text())
    except Exception as error:  # as above
        what = f"page {number + 1} cannot be read ({type(error).__name__}: {error})."
        raise _problem(name, number + 1, what, "Save the file again, or leave it out.") from error
    if len(text) > MAX_PAGE_CHARS:
        raise _problem(name, number + 1, f"page {number + 1} holds {len(text):,} characters.", "Leave the file out.")
    # Lone surrogates come from broken fonts; they can be stored nowhere.
    return text.encode("utf-8", errors="replace").decode()


def _problem(name: str, page: int | None, what: str, todo: str) -> DataError:
    return DataError([Problem(name, page, None, what, todo, "pdf")])


def _bookmarks(reader: Any) -> dict[int, tuple[str, ...]]:
    """Page (from 0) -> the titles of the last bookmark that points there; none where the outline is damaged."""
    found: dict[int, tuple[str, ...]] = {}

    def walk(entries: Any, above: tuple[str, ...]) -> None:
        titles = above
        for entry in entries:
            if isinstance(entry, list):
                if len(titles) < MAX_DEPTH:
                    walk(entry, titles)
                continue
            titles = (*above, " ".join(str(entry.title).split()))
            page = reader.get_destination_page_number(entry)
            if page is not None:
                found[page] = titles

    try:
        walk(reader.outline, ())
    except Exception as error:  # a damaged outline costs the titles, never the text
        logging.getLogger(__name__).info("bookmarks cannot be read: %s", error)
        return {}
    return found


def _sections(texts: list[str], bookmarks: dict[int, tuple[str, ...]]) -> list[Section]:
    sections: list[Section] = []
    titles: tuple[str, ...] = ()
    text = ""
    pages: list[tuple[int, int]] = []
    for number, page in enumerate(texts):
        if number in bookmarks and text:
            sections.append(Section(titles, text, tuple(pages)))
            text, pages = "", []
        titles = bookmarks.get(number, titles)
        pages.append((len(text), number + 1))
        text += page.strip() + "\n"
    return [*sections, Section(titles, text, tuple(pages))]
