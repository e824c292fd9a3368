"""The statistics of an evaluation: intervals of means, paired differences with a test, and what could be seen at all.

Not here: what is compared (run) or how it is worded (verdict).
Called by run and verdict. numpy here, scipy inside the functions that need a distribution. All random draws are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959963984540054  # the 0.975 quantile of the normal distribution
RESAMPLES = 10_000
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
    """b minus a over the same rows: mean difference, its 95 % interval, the test and its two-sided p."""

    difference: float
    low: float
    high: float
    p: float
    test: str
    wins: int  # rows where b scores higher
    losses: int  # rows where a scores higher
    ties: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with a 95 % interval: Wilson's score interval when every value is 0 or 1, else the percentile bootstrap.

    Wilson 1927, JASA 22:209-212; Efron & Tibshirani 1993, chapter 13. Raises ValueError for no values or a
    non-finite one.
    """
    values_N = _checked(values)
    if _is_binary(values_N):
        return _wilson(int(values_N.sum()), len(values_N))
    low, high = _bootstrap_mean(values_N)
    return Interval(float(values_N.mean()), low, high)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of b - a over paired rows, 95 % percentile bootstrap over rows, and a two-sided test of no difference.

    0/1 scores: McNemar's exact test, the binomial on discordant pairs (McNemar 1947, Psychometrika 12:153-157).
    Other scores: the paired sign-flip permutation test (Fisher 1935, section 21), exact up to 14 differing rows, else
    10,000 draws with p = (1 + hits) / (1 + draws) (Phipson & Smyth 2010, SAGMB 9:39). All tied: p = 1, low = high = 0.
    Raises ValueError for no rows, unequal lengths or a non-finite value.
    """
    a_N, b_N = _checked(a), _checked(b)
    if len(a_N) != len(b_N):
        raise ValueError(f"paired scores need equal lengths, not {len(a_N)} and {len(b_N)}")
    gap_N = b_N - a_N
    wins, losses = int((gap_N > 0).sum()), int((gap_N < 0).sum())
    if _is_binary(a_N) and _is_binary(b_N):
        test, p = "McNemar exact", _mcnemar_p(wins, losses)
    else:
        test, p = "sign-flip permutation", _sign_flip_p(gap_N)
    low, high = _bootstrap_mean(gap_N)
    return Difference(float(gap_N.mean()), low, high, p, test, wins, losses, len(gap_N) - wins - losses)


def minimum_detectable_difference(rows: int, discordant_share: float) -> float | None:
    """The smallest difference of two paired 0/1 means that `rows` rows show with 80 % power at p < 0.05 (two-sided).

    Solves rows = (z_a·√s + z_b·√(s - d²))² / d² for d, s the share of rows on which the two differ (Connor 1987,
    Biometrics 43:207-211). None when even d = s, every differing row in one direction, would be missed.
    """
    if rows < 1 or not 0 < discordant_share <= 1:
        raise ValueError("rows must be 1 or more and discordant_share above 0 and at most 1")
    power_z = 0.8416212335729143  # the 0.8 quantile of the normal distribution

    def rows_needed(gap: float) -> float:
        spread = math.sqrt(max(discordant_share - gap * gap, 0.0))
        return (Z_95 * math.sqrt(discordant_share) + power_z * spread) ** 2 / gap**2

    if rows_needed(discordant_share) > rows:
        return None
    low, high = 0.0, discordant_share
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rows_needed(middle) <= rows else (middle, high)
    return high


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


def _bootstrap_mean(values_N: Floats) -> tuple[float, float]:
    """2.5 % and 97.5 % points of the mean of N rows drawn with replacement, 10,000 times.

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
    low, high = np.percentile(means_R, (2.5, 97.5))
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
