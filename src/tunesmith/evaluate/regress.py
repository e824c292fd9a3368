"""Did anything get worse? Two contenders on the same suites: paired changes with intervals, a sentence each, and one.

Not here: the suites and what they measure (suites). Called by cli.regress. Which changes count is corrected (Holm) over
all judged figures of a run, so that ten suites do not cry wolf; what merely looks different is a family of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunesmith.contender import Contender
from tunesmith.evaluate.stats import (
    Difference,
    Interval,
    detectable_difference,
    holm,
    mean_interval,
    paired_difference,
)
from tunesmith.evaluate.suites.suite import Measure, Measured, Suite
from tunesmith.evaluate.verdict import SIGNIFICANT, p_words

NEAR_FLOOR = 0.03  # above guessing: from there a figure cannot fall visibly
OnProgress = Callable[[str, str, int], None]  # (contender, suite, rows just finished)


@dataclass(frozen=True, slots=True)
class Change:
    """One measure of one suite, before and after; `p_holm` is the test's p, corrected where the measure is judged."""

    suite: str
    measure: Measure
    before: Interval
    after: Interval
    difference: Difference
    p_holm: float

    @property
    def outcome(self) -> str:
        """One of "worse", "better", "changed" (neither direction is better), "same" (no change can be seen) and "floor"
        (nor could a loss: both are near guessing)."""
        gap = self.difference.difference * self.measure.better
        if self.measure.judged and self.p_holm < SIGNIFICANT:
            return "changed" if gap == 0 else "better" if gap > 0 else "worse"
        top = self.measure.floor + NEAR_FLOOR
        at_floor = self.measure.better > 0 and max(self.before.mean, self.after.mean) <= top
        return "floor" if at_floor else "same"

    @property
    def name(self) -> str:
        return f"{self.suite}, {self.measure.words}"

    @property
    def gap_words(self) -> str:
        """The difference with its interval."""
        found = self.difference
        return f"{self._gap(found.difference)} {self.measure.unit}, {self._gap(found.low)} to {self._gap(found.high)}"

    @property
    def sentence(self) -> str:
        seen = f"{self.figure(self.before.mean)} before, {self.figure(self.after.mean)} after"
        return f"{self.name}: {seen}: {self._told()}."

    def figure(self, value: float) -> str:
        return f"{value:.0f}" if self.measure.unit == "words" else f"{100 * value:.1f} %"

    def as_dict(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "measure": self.measure.name,
            "better": self.measure.better,
            "judged": self.measure.judged,
            "floor": self.measure.floor,
            "unit": self.measure.unit,
            "rows": self.difference.rows,
            "before": asdict(self.before),
            "after": asdict(self.after),
            **asdict(self.difference),
            "p_holm": self.p_holm,
            "detectable": detectable_difference(self.difference),
            "outcome": self.outcome,
            "sentence": self.sentence,
        }

    def _gap(self, value: float) -> str:
        return f"{value:+.0f}" if self.measure.unit == "words" else f"{100 * value:+.1f}"

    def _told(self) -> str:
        if self.difference.wins + self.difference.losses == 0:
            return f"the same on all {self.difference.rows} rows"
        if not self.measure.judged:
            return f"{self.gap_words} (not judged)"
        if self.outcome in ("worse", "better", "changed"):
            return f"{self.outcome} ({self.gap_words}, corrected {p_words(self.p_holm)})"
        seen = f"no change can be seen ({self.gap_words})"
        if self.outcome == "floor":
            return f"{seen}; both are near what guessing gives, where a loss cannot show"
        smallest = detectable_difference(self.difference)
        if smallest is None:
            return f"{seen}; so few rows differ that none could be"
        return f"{seen}; one of {self._gap(smallest).lstrip('+')} {self.measure.unit} would be, 4 times of 5"


@dataclass(frozen=True, slots=True)
class Regression:
    """What changed from `before` to `after`, and every row of both."""

    before: str
    after: str
    changes: Sequence[Change]
    records: Sequence[dict[str, Any]]
    seconds: dict[str, float]  # by suite, both contenders together

    @property
    def sentence(self) -> str:
        """The answer: what got worse, what better, what cannot be told."""
        judged = [change for change in self.changes if change.measure.judged and change.measure.better]
        by = {
            outcome: [one for one in judged if one.outcome == outcome]
            for outcome in ("worse", "better", "same", "floor")
        }
        parts = ["Nothing got worse that these rows show." if not by["worse"] else f"Worse: {_list(by['worse'])}."]
        parts += [f"Better: {_list(by['better'])}."] if by["better"] else []
        if by["same"]:
            loss = max(by["same"], key=_possible_loss)
            names = "; ".join(one.name for one in by["same"])
            parts.append(f"No change can be seen in: {names}.")
            parts.append(f"Not ruled out is a loss of up to {100 * _possible_loss(loss):.1f} points ({loss.name}).")
        if by["floor"]:
            parts.append(f"Near guessing, where a loss cannot show: {'; '.join(one.name for one in by['floor'])}.")
        drifted = [change for change in self.changes if change.outcome == "changed"]
        if drifted:
            seen = "; ".join(
                f"{one.name} {one.figure(one.before.mean)} -> {one.figure(one.after.mean)}" for one in drifted
            )
            parts.append(f"Replies look different: {seen}.")
        return " ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "sentence": self.sentence,
            "worse": [f"{one.suite}/{one.measure.name}" for one in self.changes if one.outcome == "worse"],
            "changes": [change.as_dict() for change in self.changes],
            "seconds": self.seconds,
        }


def regress(
    before: Contender, after: Contender, *, suites: Sequence[Suite], on_progress: OnProgress | None = None
) -> Regression:
    """Measure both contenders on every suite. Raises InputError before any is asked when one cannot be measured."""
    for suite in suites:
        for contender in (before, after):
            suite.check(contender)
    pairs: list[tuple[Suite, Measured, Measured]] = []
    seconds = {}
    for suite in suites:
        start = time.perf_counter()
        pairs.append((suite, _measure(suite, before, on_progress), _measure(suite, after, on_progress)))
        seconds[suite.name] = time.perf_counter() - start
    records = [
        {"suite": suite.name, "contender": side, **record}
        for suite, *both in pairs
        for side, measured in zip(("before", "after"), both, strict=True)
        for record in measured.records
    ]
    return Regression(before.name, after.name, compare(pairs), records, seconds)


def compare(pairs: Sequence[tuple[Suite, Measured, Measured]]) -> list[Change]:
    """Every measure of every suite, in order; p corrected over those judged, better-or-worse and drift apart."""
    plain = [
        Change(
            suite.name,
            measure,
            mean_interval(before.values[measure.name]),
            mean_interval(after.values[measure.name]),
            (found := paired_difference(before.values[measure.name], after.values[measure.name])),
            found.p,
        )
        for suite, before, after in pairs
        for measure in suite.measures
    ]
    corrected: dict[int, float] = {}
    for directed in (True, False):
        family = [
            place for place, one in enumerate(plain) if one.measure.judged and (one.measure.better != 0) == directed
        ]
        corrected.update(zip(family, holm([plain[place].p_holm for place in family]), strict=True))
    return [replace(one, p_holm=corrected.get(place, one.p_holm)) for place, one in enumerate(plain)]


def _measure(suite: Suite, contender: Contender, on_progress: OnProgress | None) -> Measured:
    if on_progress is None:
        return suite.measure(contender)
    return suite.measure(contender, progress=lambda rows: on_progress(contender.name, suite.name, rows))


def _possible_loss(change: Change) -> float:
    found = change.difference
    return max(0.0, -found.low if change.measure.better > 0 else found.high)


def _list(changes: Sequence[Change]) -> str:
    return "; ".join(f"{one.name} ({one.gap_words})" for one in changes)
