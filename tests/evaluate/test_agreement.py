"""Krippendorff's alpha against the worked examples of its author."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.agreement import nominal_alpha

FOUR_OBSERVERS = (  # Krippendorff 2011, section C: any number of observers, missing values
    "12332141 2...",
    "12332241 25.3",
    ".3332342 251.",
    "12332441 251.",
)


def units_of(*observers: str) -> list[list[str]]:
    return [[value for value in values if value != "."] for values in zip(*observers, strict=True)]


@pytest.mark.parametrize(
    ("observers", "alpha"),
    [
        (("0100000010", "1110010000"), 0.095),  # section A: two observers, two categories
        (("aabbdcccedda", "babbbccceddd"), 0.692),  # section B: two observers, five categories
        (tuple(row.replace(" ", "") for row in FOUR_OBSERVERS), 0.743),
    ],
)
def test_alpha_is_what_its_author_computes_by_hand(observers: tuple[str, ...], alpha: float) -> None:
    assert nominal_alpha(units_of(*observers)) == pytest.approx(alpha, abs=0.0005)


def test_alpha_is_unknown_where_chance_cannot_be_told() -> None:
    assert nominal_alpha([]) is None
    assert nominal_alpha([["a"], ["b"]]) is None
    assert nominal_alpha([["a", "a"], ["a", "a"]]) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=12))
def test_alpha_is_at_most_one_and_one_only_without_disagreement(units: list[list[str]]) -> None:
    alpha = nominal_alpha(units)
    if alpha is not None:
        assert alpha <= 1
        assert (alpha == 1) == all(len(set(unit)) < 2 for unit in units)
