"""The statistics agree with published values, with scipy, and with values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate.stats import mean_interval, minimum_detectable_difference, paired_difference

bits = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)
pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


def rows(wins: int, losses: int, both: int, neither: int) -> tuple[list[float], list[float]]:
    a = [0.0] * wins + [1.0] * losses + [1.0] * both + [0.0] * neither
    b = [1.0] * wins + [0.0] * losses + [1.0] * both + [0.0] * neither
    return a, b


def test_wilson_gives_newcombes_published_intervals() -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3."""
    for hits, num_rows, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = mean_interval([1.0] * hits + [0.0] * (num_rows - hits))
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    for hits, num_rows in ((3, 10), (234, 308), (308, 308), (1, 1)):
        interval = mean_interval([1.0] * hits + [0.0] * (num_rows - hits))
        wanted = binomtest(hits, num_rows).proportion_ci(method="wilson")
        assert (interval.low, interval.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_mcnemar_exact_gives_the_value_worked_out_by_hand() -> None:
    """8 wins, 2 losses: 2·(C(10,0)+C(10,1)+C(10,2))/2¹⁰ = 112/1024."""
    difference = paired_difference(*rows(8, 2, 5, 5))
    assert difference.p == pytest.approx(112 / 1024)
    assert difference.test == "McNemar exact"
    assert (difference.wins, difference.losses, difference.ties) == (8, 2, 10)
    assert difference.difference == pytest.approx(6 / 20)


def test_mcnemar_exact_agrees_with_the_binomial_summed_in_whole_numbers() -> None:
    """71 wins, 41 losses: 2·P(X <= 41) for X ~ Binomial(112, 1/2)."""
    exact = 2 * sum(math.comb(112, count) for count in range(42)) / 2**112
    assert paired_difference(*rows(71, 41, 100, 50)).p == pytest.approx(exact, rel=1e-9)


def test_sign_flips_of_few_rows_are_counted_exactly() -> None:
    """Differences .1, .2, .3, .4 all positive: 2 of 16 sign patterns are as far from 0."""
    difference = paired_difference([0.0] * 4, [0.1, 0.2, 0.3, 0.4])
    assert difference.p == pytest.approx(2 / 16)
    assert difference.test == "sign-flip permutation"


def test_sign_flips_agree_with_scipy_on_many_rows() -> None:
    from scipy.stats import permutation_test

    generator = np.random.default_rng(3)
    a, b = generator.random(40), generator.random(40) * 0.9 + 0.17
    wanted = permutation_test((b - a,), np.mean, permutation_type="samples", n_resamples=20_000, rng=4).pvalue
    assert paired_difference(list(a), list(np.clip(b, 0, 2))).p == pytest.approx(wanted, abs=0.015)


def test_the_bootstrap_is_close_to_the_normal_interval_on_many_rows() -> None:
    values = np.random.default_rng(5).random(1_000)
    interval = mean_interval(list(values))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)


def test_few_distinct_values_give_the_same_interval_as_drawing_rows() -> None:
    """The multinomial short cut and drawn rows differ by Monte Carlo noise only."""
    base = np.array([0.0, 0.25, 0.5, 1.0] * 50)
    noisy = base + np.linspace(0, 1e-9, len(base))
    short, drawn = mean_interval(list(base)), mean_interval(list(noisy))
    assert (short.low, short.high) == pytest.approx((drawn.low, drawn.high), abs=0.005)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_rows_that_all_tie_show_no_difference(value: float) -> None:
    difference = paired_difference([value] * 7, [value] * 7)
    assert (difference.difference, difference.low, difference.high, difference.p, difference.ties) == (0, 0, 0, 1, 7)


def test_one_row_is_enough_to_be_computed_and_too_few_to_be_significant() -> None:
    assert paired_difference([0.0], [1.0]).p == 1
    assert mean_interval([0.4]).low == pytest.approx(0.4)


@given(bits)
def test_an_interval_holds_its_mean_and_stays_between_0_and_1(values: list[float]) -> None:
    interval = mean_interval(values)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


@settings(max_examples=25, deadline=None)
@given(pairs)
def test_turning_the_pair_round_turns_the_difference_round(scores: list[tuple[float, float]]) -> None:
    a, b = [first for first, _ in scores], [second for _, second in scores]
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.difference == pytest.approx(-back.difference)
    assert (forth.wins, forth.losses) == (back.losses, back.wins)
    assert forth.wins + forth.losses + forth.ties == len(scores)
    assert 0 < forth.p <= 1
    assert forth.p == pytest.approx(back.p, abs=0.05)


def test_the_same_scores_give_the_same_numbers_twice() -> None:
    a, b = list(np.random.default_rng(1).random(200)), list(np.random.default_rng(2).random(200))
    assert paired_difference(a, b) == paired_difference(a, b)


def test_scores_that_cannot_be_compared_are_refused() -> None:
    for a, b in (([], []), ([1.0], [1.0, 0.0]), ([float("nan")], [1.0])):
        with pytest.raises(ValueError):
            paired_difference(a, b)


def test_the_detectable_difference_fulfils_connors_formula_and_shrinks_with_rows() -> None:
    gap = minimum_detectable_difference(308, 0.2)
    assert gap is not None
    needed = (1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.2 - gap**2)) ** 2 / gap**2
    assert needed == pytest.approx(308, abs=0.01)
    assert minimum_detectable_difference(3_080, 0.2) < gap  # type: ignore[operator]
    assert minimum_detectable_difference(10, 0.1) is None
