"""Doubles of this folder: rungs whose scores are given, and the real statistics as `decide` is given them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, pstdev
from typing import NamedTuple

from tunesmith.decide.rung import Rung, Use
from tunesmith.evaluate.stats import Difference, mean_interval, paired_difference


def compare(a: Sequence[float], b: Sequence[float], confidence: float) -> Difference:
    return paired_difference(a, b, confidence=confidence)


class Wald(NamedTuple):
    """The plain normal interval: a tenth of the time of the real one, for properties that hold with any."""

    difference: float
    low: float
    high: float
    spread: float


def compare_fast(a: Sequence[float], b: Sequence[float], confidence: float) -> Wald:
    gap = [second - first for first, second in zip(a, b, strict=True)]
    spread = pstdev(gap)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * (spread + 0.01) / math.sqrt(len(gap))
    return Wald(fmean(gap), fmean(gap) - half, fmean(gap) + half, spread)


def hits(right: int, rows: int, *, first: int = 0) -> list[float]:
    """`right` ones among `rows`, from place `first` on, round the end."""
    scores = [0.0] * rows
    for place in range(first, first + right):
        scores[place % rows] = 1.0
    return scores


def rung(
    kind: str, scores: Sequence[float], *, seconds: float, setup_s: float = 0.0, paid: float | None = None
) -> Rung:
    """A rung that takes `seconds` a request; a big model is paid by request, and the data leave the house for it."""
    interval = mean_interval(scores)
    away = kind == "big model"
    use = Use(seconds, 2 * seconds, 100.0, 5.0, None if away else 10**8, setup_s, paid)
    return Rung(kind, kind, tuple(scores), interval.low, interval.high, use, is_remote=away, leaves=away)
