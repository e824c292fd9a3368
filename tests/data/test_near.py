"""Copies are found whatever they look like, and rows that only resemble each other are left alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.rows import rows_of
from tunesmith.data.checks.near import clusters, exact_duplicates, near_duplicates
from tunesmith.data.checks.shingles import near_pairs

SYSTEM = "You are the assistant of a bank. Classify the message of the customer into one of its intents."


def near_lines(*pairs: tuple[str, str]) -> list[tuple[int | None, int | None]]:
    return [(found.line, found.related) for found in near_duplicates(rows_of(*pairs, system=SYSTEM))]


def test_an_exact_copy_points_at_the_first_and_is_no_near_duplicate() -> None:
    rows = rows_of(("Lost my card", "lost"), ("other", "x"), ("Lost  my card ", "lost"), ("Lost my card", "lost"))
    assert [(found.line, found.related) for found in exact_duplicates(rows)] == [(3, 1), (4, 1)]
    assert list(near_duplicates(rows)) == []


@pytest.mark.parametrize(
    "copy",
    [
        "my new card has not arrived after two weeks",
        "My new card has not arrived after two weeks??",
        "Hi, my new card has not arrived after two weeks!",
        "My new card has not arrived after two weeks, please.",
        "My new card hasn't arrived after two weeks!",
        "My new card has not arrvied after two weeks!",
        "My new card hasnt arived after two weeks",
        "After two weeks, my new card has not arrived!",
    ],
)
def test_a_reworded_copy_with_the_same_answer_is_found(copy: str) -> None:
    assert near_lines(("My new card has not arrived after two weeks!", "arrival"), (copy, "arrival")) == [(2, 1)]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("My new phone has not arrived after two weeks!", "arrival"),
        ("My new card has not arrived after 3 weeks!", "arrival"),
        ("My new card has arrived after two weeks!", "arrival"),
        ("My new card has not arrived after two weeks!", "another answer"),
    ],
)
def test_another_thing_number_negation_or_answer_is_no_copy(text: str, answer: str) -> None:
    assert near_lines(("My new card has not arrived after two weeks!", "arrival"), (text, answer)) == []


def test_json_answers_must_be_the_same_and_prose_may_differ_a_little() -> None:
    prose = "I am sorry to hear that. Your card was sent on Monday and takes five days; please wait until Saturday."
    for first, second, found in (
        ('{"quantity": "1", "name": "sugar"}', '{"quantity": "2", "name": "sugar"}', []),
        ('{"quantity": "1", "name": "sugar"}', '{"quantity":"1","name":"sugar"}', [(2, 1)]),
        (prose, prose.replace("I am", "I'm"), [(2, 1)]),
        (prose, prose[::-1], []),
    ):
        assert near_lines(("one cup of sugar", first), ("One cup of sugar!", second)) == found


def test_what_all_rows_share_makes_them_no_copies() -> None:
    frame = "Read the following message and tell me in one word what the customer of our bank wants to know: "
    pairs = [(f"{frame}{n * 7919 % 1000} {chr(97 + n % 26) * 5}", "label") for n in range(80)]
    assert near_lines(*pairs) == []


_WORDS = "card transfer exchange pending refund passcode balance cheque withdrawal merchant statement salary"
WORDS = _WORDS.split()
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), max_size=25)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS)
def test_clusters_hold_every_index_once_and_equal_texts_together(texts: list[str]) -> None:
    found = clusters([*texts, *(text.upper() + " !" for text in texts)])
    assert sorted(index for members in found for index in members) == list(range(2 * len(texts)))
    cluster_of = {index: number for number, members in enumerate(found) for index in members}
    assert all(cluster_of[index] == cluster_of[index + len(texts)] for index in range(len(texts)))


def test_pairs_are_verified_and_hardly_any_is_missed() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefghij ", k=60)) for _ in range(400)]
    texts += [text[:25] + "x" + text[26:] for text in texts[:200]]

    def shingles(text: str) -> set[str]:
        return {f" {text} "[at : at + 4] for at in range(len(text) - 1)}

    pairs, similarity = near_pairs(texts, threshold=0.5)
    for (first, second), value in zip(pairs.tolist(), similarity.tolist(), strict=True):
        one, two = shingles(texts[first]), shingles(texts[second])
        assert value == pytest.approx(len(one & two) / len(one | two))
    assert {(n, n + 400) for n in range(200)} <= set(map(tuple, pairs.tolist()))
    assert len(pairs) == 200


def test_texts_too_short_for_a_shingle_are_compared_too() -> None:
    assert near_pairs(["", "a", "b"], threshold=0.5)[0].tolist() == []
    assert clusters(["", "?", "a", "A"]) == [[0], [1], [2, 3]]
