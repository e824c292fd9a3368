"""Each instruction of IFEval on a reply that follows it and one that does not; strict and loose."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import InputError
from tunesmith.evaluate.ifeval import CHECKS, followed, followed_loosely
from tunesmith.evaluate.suites.catalog import EXTRACTS

ENGLISH = "the quick brown fox jumps over the lazy dog and runs away into the forest"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und läuft in den Wald."

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "GO NOW", "GO on"),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.title()),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******\none******two", "one******two******three"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [street]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. more", "Bye. PS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S again", "P.S. again"),
    ("detectable_format:constrained_response", {}, "Well: My answer is no.", "My answer is NO"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a Part 2 b",
        "Part",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n- c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    ("detectable_format:title", {}, "<<Home>>\nText", "<< >>\nText"),
    ("keywords:existence", {"keywords": ["Sun", "moon"]}, "Moon and sun", "Sun alone"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocket", "a Rock"),
    ("keywords:frequency", {"relation": "less than", "keyword": "go", "frequency": 2}, "Go", "go, go"),
    ("keywords:letter_frequency", {"let_relation": "at least", "letter": "!", "let_frequency": 2}, "a! b!", "a!"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\n'Then, it",
        "First.\n\nLast",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***\n", "a\n***\n***\nb"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "Yes. No!", "Yes, no."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "two words", "it is three"),
    ("punctuation:no_comma", {}, "a and b", "a, b"),
    ("startend:end_checker", {"end_phrase": "Bye now."}, 'So, "bye now."', "Bye now. Really"),
    ("startend:quotation", {}, ' "all of it" ', '"a" and b'),
]


@pytest.mark.parametrize(("name", "arguments", "yes", "no"), CASES)
def test_an_instruction_is_seen_to_be_followed_or_not(name: str, arguments: dict[str, Any], yes: str, no: str) -> None:
    instruction = {"id": name, **arguments}
    assert followed([instruction], yes) == [True]
    assert followed([instruction], no) == [False]


def test_every_instruction_is_tested_and_an_unknown_one_names_the_nearest() -> None:
    assert {case[0] for case in CASES} == set(CHECKS)
    with pytest.raises(InputError, match="no instruction 'punctuation:no_commas'") as caught:
        followed([{"id": "punctuation:no_commas"}], "x")
    assert "punctuation:no_comma" in caught.value.todo


def test_loose_lets_a_first_line_a_last_line_and_asterisks_go() -> None:
    quoted = [{"id": "startend:quotation"}, {"id": "punctuation:no_comma"}]
    reply = 'Sure, here it is:\n"All the text."'
    assert followed(quoted, reply) == [False, False]
    assert followed_loosely(quoted, reply) == [True, True]
    assert followed_loosely([{"id": "startend:end_checker", "end_phrase": "the end"}], "so **the end**") == [True]


def test_an_empty_reply_follows_nothing() -> None:
    assert followed([{"id": "punctuation:no_comma"}], " \n") == [False]
    assert followed_loosely([{"id": "punctuation:no_comma"}], "") == [False]


@settings(max_examples=10, deadline=None)
@given(st.text(st.sampled_from('ab.*- \n"[]<>#{}1é中'), max_size=60))
def test_every_shipped_instruction_can_be_checked_on_any_text_and_loose_is_never_stricter(reply: str) -> None:
    for line in (EXTRACTS / "ifeval.jsonl").read_text(encoding="utf-8").splitlines()[:40]:
        instructions = json.loads(line)["instructions"]
        strict, loose = followed(instructions, reply), followed_loosely(instructions, reply)
        assert all(b or not a for a, b in zip(strict, loose, strict=True))
