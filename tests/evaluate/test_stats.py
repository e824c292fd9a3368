"""The statistics agree with published values, with scipy, and with values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluate import stats
from tunesmith.evaluate.stats import (
    bootstrap_interval,
    detectable_difference,
    holm,
    mean_interval,
    minimum_detectable_difference,
    paired_difference,
    rate_difference,
    rows_needed,
)
from tunesmith.evaluate.visible import visible_sentence

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
    assert (difference.difference, difference.p, difference.ties) == (0, 1, 7)
    assert detectable_difference(difference) is None
    assert visible_sentence(difference).startswith("The two score the same on all 7 rows")


def test_rows_that_all_tie_leave_open_what_they_cannot_exclude() -> None:
    """Tango 1998 without a differing row: z²/(n + z²) on either side, not an interval of nothing."""
    difference = paired_difference([1.0] * 20, [1.0] * 20)
    assert difference.high == pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-6)
    assert difference.low == -difference.high


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60))
def test_the_ends_of_the_paired_interval_are_what_the_score_test_just_refuses(
    wins: int, losses: int, ties: int
) -> None:
    """Tango's statistic worked out from the restricted likelihood, whose maximum scipy finds."""
    from scipy.optimize import minimize_scalar

    difference = paired_difference(*rows(wins, losses, ties, 0))
    total = wins + losses + ties
    assert -1 <= difference.low <= difference.difference <= difference.high <= 1
    for gap in (difference.low, difference.high):
        low, high = max(0.0, -gap) + 1e-12, (1 - gap) / 2 - 1e-12

        def minus_log_likelihood(lost: float, gap: float = gap) -> float:
            return -(wins * math.log(lost + gap) + losses * math.log(lost) + ties * math.log(1 - 2 * lost - gap))

        lost = minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        z = (wins - losses - total * gap) / math.sqrt(total * (2 * lost + gap - gap * gap))
        assert abs(z) == pytest.approx(1.959964, abs=0.01)


@pytest.mark.parametrize(("num_rows", "share"), [(30, 0.9), (60, 0.5), (200, 0.97)])
def test_intervals_hold_the_truth_about_95_times_of_100(num_rows: int, share: float) -> None:
    """500 simulated sets; 0/1 means, paired 0/1 differences. 93 % is two standard errors below 95 %."""
    generator = np.random.default_rng(7)
    held = paired = 0
    for _ in range(500):
        a, b = ((generator.random(num_rows) < chance).astype(float) for chance in (share, share - 0.1))
        one, gap = mean_interval(list(a)), paired_difference(list(a), list(b))
        held += one.low <= share <= one.high
        paired += gap.low <= -0.1 <= gap.high
    assert 465 <= held <= 495
    assert 465 <= paired <= 495


@pytest.mark.parametrize("num_rows", [20, 50])
def test_the_bootstrap_of_skewed_scores_holds_the_truth_about_95_times_of_100(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1-like scores, 400 sets: 92 % is nearly three standard errors below 95 %."""
    monkeypatch.setattr(stats, "RESAMPLES", 1_500)
    generator = np.random.default_rng(9)
    held = 0
    for _ in range(400):
        interval = mean_interval(list(generator.binomial(10, generator.beta(4, 1, num_rows)) / 10))
        held += interval.low <= 0.8 <= interval.high
    assert 368 <= held <= 396


def test_holm_gives_the_values_of_the_textbook_example() -> None:
    """0.01, 0.04, 0.03, 0.005 of R's documentation of p.adjust's method: times 3, 1, 2, 4, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7]) == [0.7]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, p_holm in zip(p_values, corrected, strict=True):
        assert p <= p_holm <= min(1.0, p * len(p_values)) + 1e-12
    by_p = sorted(range(len(p_values)), key=lambda place: p_values[place])
    assert [corrected[place] for place in by_p] == sorted(corrected)


def test_two_samples_give_newcombes_published_interval() -> None:
    """Newcombe 1998, Statistics in Medicine 17:873-890, table II, method 10: 56/70 against 48/80."""
    gap, low, high, p = rate_difference((48, 56), (80, 70))
    assert (round(gap, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)
    assert p == pytest.approx(0.0125, abs=1e-4)


def test_the_bootstrap_of_a_figure_agrees_with_that_of_the_mean() -> None:
    values = np.random.default_rng(2).random(200)
    figure = bootstrap_interval(lambda weights_RN: weights_RN @ values / weights_RN.sum(axis=1), len(values))
    mean = mean_interval(list(values))
    assert (figure.mean, figure.low, figure.high) == pytest.approx((mean.mean, mean.low, mean.high), abs=0.004)


def test_the_rows_needed_and_the_detectable_difference_undo_each_other() -> None:
    binary = paired_difference(*rows(20, 12, 80, 38))
    graded = paired_difference([0.2, 0.5, 0.9, 0.4] * 10, [0.3, 0.5, 0.7, 0.8] * 10)
    for difference in (binary, graded):
        smallest = detectable_difference(difference)
        assert smallest is not None
        assert rows_needed(difference, smallest) == pytest.approx(difference.rows, abs=1)
    with pytest.raises(ValueError):
        rows_needed(binary, 0.0)


def test_a_planted_difference_of_the_detectable_size_is_seen_4_times_of_5() -> None:
    generator = np.random.default_rng(11)
    share, num_rows = 0.3, 200
    gap = minimum_detectable_difference(num_rows, share)
    assert gap is not None
    chances = [(share + gap) / 2, (share - gap) / 2, 1 - share]
    drawn = generator.multinomial(num_rows, chances, size=1_000)
    seen = [
        paired_difference(*rows(int(wins), int(losses), int(ties), 0)).p < 0.05 for wins, losses, ties in drawn[:200]
    ]
    assert 0.68 <= np.mean(seen) <= 0.88  # the exact test is a little stricter than the formula


def test_the_sentence_says_what_cannot_be_seen_and_what_would_show_it() -> None:
    unclear = visible_sentence(paired_difference(*rows(20, 12, 80, 38)))
    assert unclear == (
        "With 150 rows a difference under 10.5 points cannot be seen; "
        "440 more rows would show the 5.3 points seen, if they are real."
    )
    assert visible_sentence(paired_difference(*rows(40, 5, 80, 25))).endswith("cannot be seen.")
    assert "differ on only 2 of 20 rows" in visible_sentence(paired_difference(*rows(2, 0, 9, 9)))


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
