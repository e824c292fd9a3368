"""What so many rows can show at all, in one plain sentence.

Not here: the numbers (stats), the verdict between two contenders (verdict). Called by run for every pair.
"""

from __future__ import annotations

from tunesmith.evaluate.stats import Difference, detectable_difference, rows_needed

SIGNIFICANT = 0.05
FOREVER = 1_000_000  # rows that nobody collects


def visible_sentence(difference: Difference) -> str:
    """Which difference these rows would have shown (4 times of 5, at p < 0.05); how many more the one seen needs."""
    rows = difference.rows
    if difference.wins + difference.losses == 0:
        return f"The two score the same on all {rows} rows: whether they differ elsewhere, only more rows can tell."
    smallest = detectable_difference(difference)
    if smallest is None:
        seen = f"The two differ on only {difference.wins + difference.losses} of {rows} rows: no difference can be seen"
    else:
        seen = f"With {rows} rows a difference under {_points(smallest)} cannot be seen"
    if difference.p < SIGNIFICANT or difference.difference == 0:
        return f"{seen}."
    more = rows_needed(difference, difference.difference) - rows
    if more > FOREVER:
        return f"{seen}; if there is one, it is too small for any number of rows."
    if more <= 0:
        return f"{seen}; the {_points(difference.difference)} seen here are at that border."
    return (
        f"{seen}; {_round_up(more):,} more rows would show the {_points(difference.difference)} seen, if they are real."
    )


def _points(share: float) -> str:
    return f"{abs(share) * 100:.1f} points"


def _round_up(rows: int) -> int:
    """To two digits: the forecast is no finer than that."""
    step = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // step) * step
