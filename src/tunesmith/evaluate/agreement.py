"""How far several raters agree beyond chance: Krippendorff's alpha for categories.

Not here: what was rated (blind, tally). Called by tally.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def nominal_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """1 is full agreement, 0 what chance gives, below 0 less than that. Each unit holds the categories that its raters
    gave, in any number: who left it out is not in it. Units of one rater say nothing and do not count.

    None when no unit has two raters, or all gave one category everywhere, so that chance cannot be told.
    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C, nominal difference.
    """
    disagreed = 0.0
    totals: Counter[Hashable] = Counter()
    for unit in units:
        if len(unit) < 2:
            continue
        counts = Counter(unit)
        totals.update(counts)
        agreeing = sum(count * (count - 1) for count in counts.values())
        disagreed += (len(unit) * (len(unit) - 1) - agreeing) / (len(unit) - 1)
    values = totals.total()
    by_chance = values * values - sum(count * count for count in totals.values())
    if not by_chance:
        return None
    return 1 - (values - 1) * disagreed / by_chance
