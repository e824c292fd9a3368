"""The verdict: the cheapest rung that is not worse than any other beyond the margin, why, and what would change it.

Not here: the rule (judged, margin), costs (costs), the sentences (words), measuring (ladder), the page. A pure function
over plain data. Called by ladder's caller, the command `decide`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.decide.costs import Answers, Prices
from tunesmith.decide.judged import Judged, Verdict
from tunesmith.decide.margin import Compare, remembered
from tunesmith.decide.rung import Rung
from tunesmith.decide.words import changes, headline, reasons
from tunesmith.errors import InputError


def decide(
    measured: Sequence[Rung], answers: Answers, *, margin: float, compare: Compare, prices: Prices | None = None
) -> Verdict:
    """Decide between rungs measured on the same rows. `margin` is a share (0.02: two points); `compare` gives the
    interval of a paired difference (`evaluate.stats.paired_difference`).

    Only rungs no dearer than the one with the best mean are candidates: a dearer one that is no better is never chosen.
    Raises InputError for no rung, rungs of other rows, or a margin outside 0 to 1.
    """
    _check(measured, margin)
    gap = remembered(compare, {rung.name: rung.scores for rung in measured})
    judged = Judged(measured, answers, margin, prices or Prices(), gap)
    verdict = judged.verdict()
    by_name = {rung.name: rung for rung in measured}
    said = reasons(verdict, by_name, answers=answers)
    return replace(
        verdict, headline=headline(verdict, by_name), reasons=said, changes=changes(verdict, judged, by_name=by_name)
    )


def _check(measured: Sequence[Rung], margin: float) -> None:
    if not measured:
        raise InputError("No rung was measured, so nothing can be decided.", "Give a larger --budget.")
    if not 0 <= margin < 1:
        raise InputError(f"A margin of {100 * margin:g} points makes no sense.", "Give 0 to 99 points, such as 2.")
    rows = {rung.name: len(rung.scores) for rung in measured}
    if len(set(rows.values())) > 1 or not min(rows.values()):
        raise InputError(f"The rungs were measured on other numbers of rows: {rows}.", "Measure them on the same ones.")
    if len(rows) < len(measured):
        raise InputError("Two rungs have the same name.", "Name each once.")
