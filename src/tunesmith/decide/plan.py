"""What fits into the budget: how many test rows, which rungs in which order, and what is left out with its time.

Not here: measuring the sample, and the climb (ladder calls this).
Everything is estimated from a small measured sample, before a test row is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

USABLE = 0.9  # of what is left: estimates from a small sample are no finer
LEAST_SHARE, SHRUNK_SHARE = 0.4, 0.5  # of that, for a training that does with less time than it would take
FEW_ROWS = 100  # test rows; before there are fewer, dear rungs are left out
FEWEST_ROWS = 30
ALWAYS = ("prompt", "floor")
BROUGHT = ("retrieval", "big model")  # the user gave documents or a server to have them measured
COMPARED = 2  # rungs beside these


@dataclass(frozen=True, slots=True)
class Sample:
    row_s: float  # seconds a row takes, several at once


@dataclass(frozen=True, slots=True)
class NotMeasured:
    name: str
    reason: str
    seconds: float | None  # the estimate


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds`: estimate of each rung, set-up and answers; `setup_s`: what a set-up may take."""

    num_rows: int
    order: Sequence[str]
    seconds: Mapping[str, float]
    setup_s: Mapping[str, float]
    not_measured: Sequence[NotMeasured]
    notes: Sequence[str]
    test_places: Sequence[int] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        return cls(**{**values, "not_measured": [NotMeasured(**one) for one in values["not_measured"]]})

    def with_rows(self, places: Sequence[int], failed: Sequence[NotMeasured]) -> Plan:
        return replace(self, test_places=places, not_measured=[*failed, *self.not_measured])


def make_plan(
    samples: Mapping[str, Sample],
    *,
    setup_s: Mapping[str, float],
    shrinks: Collection[str],
    needs: Mapping[str, Sequence[str]],
    left_s: float,
    num_test: int,
) -> Plan:
    """Spread `left_s` seconds over set-ups and test rows.

    A set-up in `shrinks` (a training) does with less time: with 40 % of the budget before another rung is left out, and
    with 50 % before there are more than 100 test rows. While 100 do not fit, the dearest rung is left out, trainings
    and what the user brought after all others; the last two beside the prompt and the floor are kept down to 30 rows,
    since one rung alone decides nothing.
    """
    usable_s = USABLE * left_s
    few = min(num_test, FEW_ROWS)
    staying = list(samples)
    out: list[NotMeasured] = []
    while True:
        shrinking = [name for name in staying if name in shrinks]
        fixed_s = sum(setup_s.get(name, 0.0) for name in staying if name not in shrinks)
        whole_s = sum(setup_s.get(name, 0.0) for name in shrinking)
        row_s = sum(samples[name].row_s for name in staying)
        if fixed_s + min(whole_s, LEAST_SHARE * usable_s) + few * row_s <= usable_s:
            break
        takes_s = {name: setup_s.get(name, 0.0) + few * samples[name].row_s for name in staying if name not in ALWAYS}
        if not takes_s:
            break
        if len(takes_s) <= COMPARED and few > FEWEST_ROWS:
            few = max(FEWEST_ROWS, few // 2)
            continue
        dearest = max(takes_s, key=lambda name: (name not in shrinks and name not in BROUGHT, takes_s[name]))
        for name in [name for name in staying if name == dearest or dearest in needs.get(name, ())]:
            reason = f"the budget does not hold it beside the others and {few} test rows"
            out.append(NotMeasured(name, reason, takes_s[name]))
            staying.remove(name)
    shrunk_s = min(whole_s, SHRUNK_SHARE * usable_s, max(0.0, usable_s - fixed_s - few * row_s))
    fitting = int((usable_s - fixed_s - shrunk_s) / row_s) if row_s else num_test
    rows = max(min(num_test, fitting), min(num_test, FEWEST_ROWS))
    shrunk_s = min(whole_s, max(shrunk_s, usable_s - fixed_s - rows * row_s))  # what the rows leave
    allowed = {name: setup_s.get(name, 0.0) for name in staying}
    allowed |= {name: shrunk_s * allowed[name] / whole_s for name in shrinking if whole_s}
    seconds = {name: allowed[name] + rows * samples[name].row_s for name in staying}
    total = {name: seconds[name] + sum(seconds.get(need, 0.0) for need in needs.get(name, ())) for name in staying}
    notes = _notes(rows, num_test, out, seconds=sum(seconds.values()), left_s=left_s)
    return Plan(rows, sorted(staying, key=lambda name: total[name]), seconds, allowed, out, notes)


def _notes(rows: int, num_test: int, out: Sequence[NotMeasured], *, seconds: float, left_s: float) -> list[str]:
    notes = [f"{one.name}: not measured, {one.reason} (about {one.seconds:.0f} s)." for one in out]
    drawn = "all" if rows == num_test else f"{rows} of {num_test}, drawn by seed,"
    notes.append(f"Test rows: {drawn} take about {seconds:.0f} s with every set-up; {left_s:.0f} s are left.")
    if seconds > left_s:
        notes.append(f"This is more than the budget: with fewer than {FEWEST_ROWS} rows nothing could be said.")
    return notes
