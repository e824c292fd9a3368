"""The rule applied to measured rungs, as plain data: a Verdict without words, and what it depends on.

Not here: the rule in numbers (margin), costs (costs), its sentences (words), checking what was measured (verdict).
Called by verdict; words asks the same rule what another answer would change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.decide.costs import Answers, Cost, Prices, barred, cheapest_first, cost_of
from tunesmith.decide.margin import Standing, stand
from tunesmith.decide.rung import Rung

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


@dataclass(frozen=True, slots=True)
class Judged:
    """What a verdict depends on."""

    measured: Sequence[Rung]
    answers: Answers
    margin: float
    prices: Prices
    gap: Any

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
