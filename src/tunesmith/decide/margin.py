"""Which rungs are shown not to be worse than any other by more than a margin, and how many rows would show it.

Not here: what they cost (costs), the words (verdict). The interval of a paired difference is given as a function.
Called by verdict only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

ALPHA = 0.05  # of an interval, both sides together
POWER = 0.8
MIN_ROWS = 30  # below, no interval is trusted
FOREVER_ROWS = 1_000_000  # rows that nobody collects
NO_ROOM = 1e-6  # a share that no number of rows tells from 0

Scores = Mapping[str, Sequence[float]]


class Gap(Protocol):
    """b minus a over the same rows: the mean, its interval, the standard deviation of the rows' differences."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def spread(self) -> float: ...


Compare = Callable[[Sequence[float], Sequence[float], float], Gap]  # a, b, confidence of the interval


@dataclass(frozen=True, slots=True)
class Standing:
    """A rung against the one with the best mean (`difference`, `low`, `high`) and against all others.

    `margin_needed`: the smallest margin by which these rows would show that it is not worse than any other.
    `rows_needed`: how many rows would show it for the margin that was asked, four times of five, if all differences are
    as measured; None when no number would.
    """

    name: str
    difference: float
    low: float
    high: float
    confidence: float
    is_shown: bool
    margin_needed: float
    rows_needed: int | None

    @property
    def state(self) -> str:
        if self.is_shown:
            return "not worse"
        return "worse" if self.high < 0 else "open"


def remembered(compare: Compare, scores: Scores) -> Callable[[str, str, float], Gap]:
    """`compare` by the names of rungs, each pair computed once."""
    known: dict[tuple[str, str, float], Gap] = {}

    def gap(a: str, b: str, confidence: float) -> Gap:
        key = (a, b, round(confidence, 9))
        if key not in known:
            known[key] = compare(scores[a], scores[b], confidence)
        return known[key]

    return gap


def stand(
    candidates: Sequence[str],
    others: Sequence[str],
    *,
    best: str,
    margin: float,
    rows: int,
    gap: Callable[[str, str, float], Gap],
) -> list[Standing]:
    """How each of `candidates` stands among `others` (which holds the candidates and `best` too).

    A candidate is shown not to be worse when the interval of its difference to every other lies above -margin: an
    intersection-union test, which needs no correction for the others (Berger 1982, Technometrics 24:295-300). Several
    candidates are corrected for by Holm's steps (1979): intervals at 1 - 0.05/m for m candidates, wider first, and
    narrower ones for those left when some are shown. So the chance of calling any of them good enough that is not stays
    below 2.5 %.
    """
    left = list(candidates)
    shown_at: dict[str, float] = {}
    while left:
        confidence = 1 - ALPHA / len(left)
        shown = [name for name in left if rows >= MIN_ROWS and _needed(name, others, confidence, gap) < margin]
        if not shown:
            break
        shown_at |= dict.fromkeys(shown, confidence)
        left = [name for name in left if name not in shown]
    last = 1 - ALPHA / max(1, len(left))
    standings = []
    for name in candidates:
        confidence = shown_at.get(name, last)
        to_best = gap(best, name, confidence)
        standings.append(
            Standing(
                name,
                to_best.difference,
                to_best.low,
                to_best.high,
                confidence,
                name in shown_at,
                _needed(name, others, confidence, gap),
                _rows_needed(name, others, confidence, gap=gap, margin=margin, rows=rows),
            )
        )
    return standings


def _needed(name: str, others: Sequence[str], confidence: float, gap: Callable[[str, str, float], Gap]) -> float:
    return max((-gap(other, name, confidence).low for other in others if other != name), default=-1.0)


def _rows_needed(
    name: str,
    others: Sequence[str],
    confidence: float,
    *,
    gap: Callable[[str, str, float], Gap],
    margin: float,
    rows: int,
) -> int | None:
    """((z_a + z_b)·sd / (margin + difference))² for the hardest of the others. A pair that never differs: the rows at
    which a score interval without a single difference ends at the margin, z²·(1 - margin) / margin."""
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    needed = MIN_ROWS
    for other in others:
        if other == name:
            continue
        found = gap(other, name, confidence)
        if found.low > -margin:
            continue
        room = margin + found.difference
        if min(room, margin) <= NO_ROOM:
            return None
        spread_rows = ((z + NormalDist().inv_cdf(POWER)) * found.spread / room) ** 2
        more = max(spread_rows, z * z * (1 - margin) / margin, rows + 1)
        if more > FOREVER_ROWS:
            return None
        needed = max(needed, math.ceil(more))
    return needed
