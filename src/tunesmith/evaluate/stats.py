"""The statistics of an evaluation: intervals, paired differences with a test, Holm, and what could be seen at all.

Not here: what is compared (run) or how it is worded (verdict).
Called by run, verdict, the scorers' aggregates and memorise. numpy here, scipy inside the functions that need a
distribution. All random draws are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959963984540054  # the 0.975 quantile of the normal distribution
Z_POWER = 0.8416212335729143  # the 0.8 quantile: a difference counts as visible when 4 of 5 such tests show it
RESAMPLES = 10_000
FIGURE_RESAMPLES = 2_000  # of a figure that is computed anew for every resample
SEED = 20_240_501
EXACT_FLIPS = 14  # up to 2**14 sign patterns are listed, beyond that they are drawn
CELLS = 4_000_000  # numbers held at once while resampling

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """b minus a over the same rows: mean difference, its 95 % interval (if no other was asked), the test and its p.

    `spread` is the standard deviation of the rows' differences: what says how many rows would show how much.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str
    wins: int  # rows where b scores higher
    losses: int  # rows where a scores higher
    ties: int
    spread: float

    @property
    def rows(self) -> int:
        return self.wins + self.losses + self.ties


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with a 95 % interval: Wilson's score interval when every value is 0 or 1, else the expanded percentile
    bootstrap. Wilson 1927, JASA 22:209-212; Efron & Tibshirani 1993, chapter 13. Raises ValueError for no values or a
    non-finite one.
    """
    values_N = _checked(values)
    if _is_binary(values_N):
        return _wilson(int(values_N.sum()), len(values_N))
    low, high = _bootstrap_mean(values_N)
    return Interval(float(values_N.mean()), low, high)


def paired_difference(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Difference:
    """Mean of b - a over paired rows with an interval, and a two-sided test of no difference.

    0/1 scores: McNemar's exact test, the binomial on discordant pairs (McNemar 1947, Psychometrika 12:153-157), and
    Tango's score interval (1998, Statistics in Medicine 17:891-908), which stays open when no row differs.
    Other scores: the paired sign-flip permutation test (Fisher 1935, section 21), exact up to 14 differing rows, else
    10,000 draws with p = (1 + hits) / (1 + draws) (Phipson & Smyth 2010, SAGMB 9:39), and the percentile bootstrap
    over rows. All tied: p = 1. Raises ValueError for no rows, unequal lengths or a non-finite value.
    """
    a_N, b_N = _checked(a), _checked(b)
    if len(a_N) != len(b_N):
        raise ValueError(f"paired scores need equal lengths, not {len(a_N)} and {len(b_N)}")
    gap_N = b_N - a_N
    wins, losses = int((gap_N > 0).sum()), int((gap_N < 0).sum())
    if _is_binary(a_N) and _is_binary(b_N):
        test, p = "McNemar exact", _mcnemar_p(wins, losses)
        low, high = _tango(wins, losses, rows=len(gap_N), confidence=confidence)
    else:
        test, p = "sign-flip permutation", _sign_flip_p(gap_N)
        low, high = _bootstrap_mean(gap_N, confidence)
    ties = len(gap_N) - wins - losses
    return Difference(float(gap_N.mean()), low, high, p, test, wins, losses, ties, float(gap_N.std()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p adjusted for being one of several (Holm 1979, Scandinavian Journal of Statistics 6:65-70), in their order.

    One below 0.05 may be called a difference, and the chance of a single false one among all stays below 5 %.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def rate_difference(hits: tuple[int, int], rows: tuple[int, int]) -> tuple[float, float, float, float]:
    """Second minus first share of two independent samples: difference, 95 % interval, two-sided p.

    Newcombe 1998, Statistics in Medicine 17:873-890, method 10 (from Wilson's intervals); Fisher's exact test.
    """
    from scipy.stats import fisher_exact

    a, b = _wilson(hits[0], rows[0]), _wilson(hits[1], rows[1])
    gap = b.mean - a.mean
    low = gap - math.hypot(b.mean - b.low, a.high - a.mean)
    high = gap + math.hypot(b.high - b.mean, a.mean - a.low)
    table = [[hits[0], rows[0] - hits[0]], [hits[1], rows[1] - hits[1]]]
    return gap, low, high, float(fisher_exact(table).pvalue)


def bootstrap_interval(statistic: Callable[[Floats], Floats], rows: int) -> Interval:
    """A figure of all rows together (macro-F1, corpus BLEU) with its 95 % percentile bootstrap interval over rows.

    `statistic` takes how often each row counts (R resamples, N rows) and returns R figures; NaN where a resample has
    none. Efron & Tibshirani 1993, chapter 13.
    """
    generator = np.random.default_rng(SEED)
    whole = float(statistic(np.ones((1, rows)))[0])
    size = max(1, CELLS // rows)
    chunks = [min(size, FIGURE_RESAMPLES - start) for start in range(0, FIGURE_RESAMPLES, size)]
    even = np.full(rows, 1 / rows)
    drawn = [statistic(generator.multinomial(rows, even, size=chunk).astype(np.float64)) for chunk in chunks]
    figures_R = np.concatenate(drawn)
    figures_R = figures_R[np.isfinite(figures_R)]
    low, high = _ends(figures_R, rows) if len(figures_R) else (whole, whole)
    return Interval(whole, low, high)


def detectable_difference(difference: Difference) -> float | None:
    """The smallest true difference that as many rows show with 80 % power at p < 0.05; None when it cannot be told
    (no row differs) or even rows that all differ in one direction would not show it."""
    if difference.spread == 0 and difference.wins + difference.losses == 0:
        return None
    if difference.test == "McNemar exact":
        return minimum_detectable_difference(difference.rows, (difference.wins + difference.losses) / difference.rows)
    return (Z_95 + Z_POWER) * difference.spread / math.sqrt(difference.rows)


def rows_needed(difference: Difference, gap: float) -> int:
    """How many rows, spread like these, show a true difference of `gap` with 80 % power at p < 0.05.

    0/1 scores: Connor 1987 (a `gap` above the share of differing rows is held at that share); others: the normal
    approximation (z_a + z_b)²·sd² / gap². Raises ValueError for a gap of 0 or rows of which none differs.
    """
    gap = abs(gap)
    share = (difference.wins + difference.losses) / difference.rows
    if gap == 0 or share == 0:
        raise ValueError("the rows needed can be told for a gap above 0, from rows of which some differ")
    if difference.test == "McNemar exact":
        return math.ceil(_connor_rows(min(gap, share), share))
    return math.ceil(((Z_95 + Z_POWER) * difference.spread / gap) ** 2)


def minimum_detectable_difference(rows: int, discordant_share: float) -> float | None:
    """The smallest difference of two paired 0/1 means that `rows` rows show with 80 % power at p < 0.05 (two-sided).

    Solves rows = (z_a·√s + z_b·√(s - d²))² / d² for d, s the share of rows on which the two differ (Connor 1987,
    Biometrics 43:207-211). None when even d = s, every differing row in one direction, would be missed.
    """
    if rows < 1 or not 0 < discordant_share <= 1:
        raise ValueError("rows must be 1 or more and discordant_share above 0 and at most 1")
    if _connor_rows(discordant_share, discordant_share) > rows:
        return None
    low, high = 0.0, discordant_share
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _connor_rows(middle, discordant_share) <= rows else (middle, high)
    return high


def _connor_rows(gap: float, share: float) -> float:
    spread = math.sqrt(max(share - gap * gap, 0.0))
    return (Z_95 * math.sqrt(share) + Z_POWER * spread) ** 2 / gap**2


def _checked(values: Sequence[float]) -> Floats:
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0:
        raise ValueError("scores must be a list of one number or more")
    if not np.isfinite(values_N).all():
        raise ValueError("scores must be finite numbers")
    return values_N


def _is_binary(values_N: Floats) -> bool:
    return bool(np.isin(values_N, (0.0, 1.0)).all())


def _wilson(hits: int, rows: int) -> Interval:
    share = hits / rows
    scale = 1 + Z_95**2 / rows
    centre = (share + Z_95**2 / (2 * rows)) / scale
    half = Z_95 / scale * math.sqrt(share * (1 - share) / rows + Z_95**2 / (4 * rows**2))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == rows else min(1.0, centre + half)
    return Interval(share, low, high)


def _tango(wins: int, losses: int, *, rows: int, confidence: float) -> tuple[float, float]:
    """The differences that the score test does not refuse; each end is found by halving."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def score(gap: float) -> float:
        """Tango's statistic for a true difference `gap`; `share` is the restricted estimate of the rows lost."""
        linear = -wins - losses + (2 * rows - wins + losses) * gap
        root = math.sqrt(max(linear * linear + 8 * rows * losses * gap * (1 - gap), 0.0))
        share = (root - linear) / (4 * rows)
        variance = rows * (2 * share + gap * (1 - gap))
        return (wins - losses - rows * gap) / math.sqrt(variance) if variance > 0 else 0.0

    def end(outside: float, wanted: float) -> float:
        inside = (wins - losses) / rows
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) < wanted else (inside, middle)
        return (inside + outside) / 2

    return end(-1.0, z), end(1.0, z)


def _bootstrap_mean(values_N: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the mean of N rows drawn with replacement, 10,000 times.

    Few distinct values (0/1 scores, their differences) are drawn as multinomial counts: the same law, faster.
    """
    generator = np.random.default_rng(SEED)
    rows = len(values_N)
    distinct_U, counts_U = np.unique(values_N, return_counts=True)
    if len(distinct_U) == 1:
        return float(distinct_U[0]), float(distinct_U[0])
    if len(distinct_U) <= 64:
        drawn_RU = generator.multinomial(rows, counts_U / rows, size=RESAMPLES)
        means_R = drawn_RU @ distinct_U / rows
    else:
        chunk = max(1, CELLS // rows)
        sizes = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
        means_R = np.concatenate([values_N[generator.integers(0, rows, (size, rows))].mean(axis=1) for size in sizes])
    return _ends(means_R, rows, confidence)


def _ends(figures_R: Floats, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """The percentiles of resampled figures between which `confidence` lies, moved out for few rows by what the
    bootstrap is too narrow: to t with n - 1 degrees, times √(n/(n - 1)) (Hesterberg 2015, American Statistician
    69:371-386, 3.5)."""
    from scipy.special import ndtr, stdtrit

    upper = (1 + confidence) / 2
    share = float(ndtr(-math.sqrt(rows / (rows - 1)) * stdtrit(rows - 1, upper))) if rows > 1 else 1 - upper
    low, high = np.quantile(figures_R, (share, 1 - share))
    return float(low), float(high)


def _mcnemar_p(wins: int, losses: int) -> float:
    if wins + losses == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue)


def _sign_flip_p(gap_N: Floats) -> float:
    """Share of sign patterns whose mean is at least as far from 0 as the one seen; rows that tie do not matter."""
    gap_M = gap_N[gap_N != 0]
    if len(gap_M) == 0:
        return 1.0
    seen = abs(gap_M.sum()) - 1e-9 * float(np.abs(gap_M).sum())  # float noise must not decide a tie
    if len(gap_M) <= EXACT_FLIPS:
        patterns_PM = (np.arange(2 ** len(gap_M))[:, None] >> np.arange(len(gap_M))) & 1
        return float((np.abs(_flipped_sums(patterns_PM, gap_M)) >= seen).mean())
    generator = np.random.default_rng(SEED)
    chunk = max(1, CELLS // len(gap_M))
    hits = 0
    for start in range(0, RESAMPLES, chunk):
        patterns_PM = generator.integers(0, 2, (min(chunk, RESAMPLES - start), len(gap_M)), dtype=np.int8)
        hits += int((np.abs(_flipped_sums(patterns_PM, gap_M)) >= seen).sum())
    return (1 + hits) / (1 + RESAMPLES)


def _flipped_sums(patterns_PM: ArrayLike, gap_M: Floats) -> Floats:
    """Sum of ±gap for each row of 0/1 `patterns_PM`; 1 keeps the sign, 0 turns it."""
    sums_P: Floats = 2 * (np.asarray(patterns_PM, dtype=np.float64) @ gap_M) - gap_M.sum()
    return sums_P
