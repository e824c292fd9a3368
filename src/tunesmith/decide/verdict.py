"""The verdict: the cheapest rung that is not worse than any other beyond the margin, why, and what would change it.

Not here: the rule in numbers (margin), costs (costs), measuring (ladder), the page. A pure function over plain data.
Called by ladder's caller, the command `decide`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunesmith.decide.costs import Answers, Cost, Prices, barred, cheapest_first, cost_of
from tunesmith.decide.margin import Compare, Standing, remembered, stand
from tunesmith.decide.rung import Rung
from tunesmith.decide.words import changes, headline, reasons
from tunesmith.errors import InputError

DECIDED, TOO_FEW, NONE_FITS = "decided", "too few rows to say", "no rung fits the answers"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`chosen` is None unless decided. `open`: the rungs these rows do not tell from the best, cheapest first.
    `barred`: rungs that a static answer rules out, and why. `changes`: what would make the verdict another."""

    outcome: str
    chosen: str | None
    best: str | None
    margin: float
    rows: int
    standings: Sequence[Standing]
    barred: Mapping[str, str]
    costs: Mapping[str, Cost]
    headline: str = ""
    reasons: Sequence[str] = ()
    changes: Sequence[str] = ()

    @property
    def open(self) -> list[str]:
        return [one.name for one in self.standings if one.state == "open" or one.name == self.best]

    def as_dict(self) -> dict[str, Any]:
        document = asdict(self)
        document["standings"] = [{**asdict(one), "state": one.state} for one in self.standings]
        document["costs"] = {name: {**asdict(cost), "total": cost.total} for name, cost in self.costs.items()}
        return {**document, "open": self.open if self.outcome == TOO_FEW else []}


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
    judged = _Judged(measured, answers, margin, prices or Prices(), gap)
    verdict = judged.verdict()
    by_name = {rung.name: rung for rung in measured}
    said = reasons(verdict, by_name, answers=answers)
    return replace(
        verdict, headline=headline(verdict, by_name), reasons=said, changes=changes(verdict, judged, by_name=by_name)
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a verdict depends on; `again` asks what it would be with another of these."""

    measured: Sequence[Rung]
    answers: Answers
    margin: float
    prices: Prices
    gap: Any

    def again(self, **other: Any) -> Verdict:
        return replace(self, **other).verdict()

    def verdict(self) -> Verdict:
        costs = {rung.name: cost_of(rung, prices=self.prices, answers=self.answers) for rung in self.measured}
        out = {rung.name: why for rung in self.measured if (why := barred(rung, self.answers))}
        fitting = [rung for rung in self.measured if rung.name not in out]
        rows = len(self.measured[0].scores)
        if not fitting:
            return Verdict(NONE_FITS, None, None, self.margin, rows, (), out, costs)
        ranked = cheapest_first(fitting, prices=self.prices, answers=self.answers)
        best = max(ranked, key=lambda rung: rung.mean)  # of equal ones the cheapest, which max meets first
        names = [rung.name for rung in ranked]
        candidates = names[: names.index(best.name) + 1]
        standings = stand(candidates, names, best=best.name, margin=self.margin, rows=rows, gap=self.gap)
        chosen = next((one.name for one in standings if one.is_shown), None)
        outcome = DECIDED if chosen else TOO_FEW
        return Verdict(outcome, chosen, best.name, self.margin, rows, standings, out, costs)


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
