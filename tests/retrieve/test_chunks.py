"""Splitting: nothing is lost, order is kept, sizes are bounded, headings are never crossed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.retrieve.chunks import Chunk, count_words, split_document
from tunesmith.retrieve.section import Document, Section

PIECES = ["word ", "A sentence. ", "Zwei Sätze! ", "\n", "\n\n", " \n \n ", "x" * 90, " ", "漢字。", "ไทย", "½\u00a0"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
DOCUMENTS = st.lists(TEXTS, min_size=1, max_size=4).map(
    lambda texts: Document("d", tuple(Section((f"part {number}",), text) for number, text in enumerate(texts)))
)


def chunks_of(document: Document, title: str, *, words: int, overlap: int) -> list[Chunk]:
    return [chunk for chunk in split_document(document, words=words, overlap=overlap) if chunk.titles == (title,)]


@given(DOCUMENTS, st.integers(1, 30), st.integers(0, 29))
@settings(max_examples=150, deadline=None)
def test_passages_hold_all_text_in_order_within_their_size_and_heading(
    document: Document, words: int, overlap: int
) -> None:
    overlap = min(overlap, words - 1)
    numbers = [chunk.number for chunk in split_document(document, words=words, overlap=overlap)]
    assert numbers == list(range(len(numbers)))
    for number, section in enumerate(document.sections):
        held = [False] * len(section.text)
        before = -1
        for chunk in chunks_of(document, f"part {number}", words=words, overlap=overlap):
            end = chunk.start + len(chunk.text)
            assert section.text[chunk.start : end] == chunk.text == chunk.text.strip() != ""
            assert count_words(chunk.text) <= words + overlap
            assert end > before
            before = end
            held[chunk.start : end] = [True] * len(chunk.text)
        lost = [letter for letter, is_held in zip(section.text, held, strict=True) if not is_held]
        assert not "".join(lost).strip()


@given(TEXTS, st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_without_overlap_no_character_stands_in_two_passages(text: str, words: int) -> None:
    chunks = list(split_document(Document("d", (Section((), text),)), words=words, overlap=0))
    for one, two in zip(chunks, chunks[1:], strict=False):
        assert one.start + len(one.text) <= two.start


def test_paragraphs_stay_whole_where_they_fit_and_long_ones_are_cut_at_sentences() -> None:
    text = "One two three.\n\nFour five. Six seven eight. Nine ten eleven twelve.\n\nLast."
    (first, *rest) = split_document(Document("d", (Section((), text),)), words=6, overlap=0)
    assert first.text == "One two three.\n\nFour five."
    assert [chunk.text for chunk in rest] == ["Six seven eight.", "Nine ten eleven twelve.\n\nLast."]


def test_the_overlap_repeats_whole_sentences_of_the_passage_before() -> None:
    text = "One two three. Four five. Six seven. Eight nine."
    chunks = list(split_document(Document("d", (Section((), text),)), words=5, overlap=2))
    assert [chunk.text for chunk in chunks] == ["One two three. Four five.", "Four five. Six seven. Eight nine."]


def test_a_passage_names_the_page_it_begins_on() -> None:
    section = Section((), "one two\nthree four\n", pages=((0, 7), (8, 8)))
    assert [chunk.page for chunk in split_document(Document("d", (section,)), words=2, overlap=0)] == [7, 8]


def test_an_overlap_as_large_as_a_passage_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        list(split_document(Document("d", ()), words=5, overlap=5))
