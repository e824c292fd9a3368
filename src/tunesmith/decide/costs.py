"""What a rung costs for 1,000 requests: running it, and setting it up again as often as the facts change.

Not here: measuring time (ladder). What people cost is left out: nobody measured it.
Called by verdict and page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.decide.rung import KINDS, Rung

SETUPS_A_MONTH = {"weekly": 52 / 12, "rarely": 1 / 12}
FactsChange = Literal["weekly", "rarely"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What no data can tell. None: not answered; facts then count as rarely changing, and no rung is ruled out."""

    facts_change: FactsChange | None = None
    cite: bool | None = None  # must the sources of an answer be named?
    data_may_leave: bool | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """`per_hour`: of this machine, in the currency that is also paid for a server by request."""

    per_hour: float = 0.5
    requests_a_month: float = 10_000


@dataclass(frozen=True, slots=True)
class Cost:
    """For 1,000 requests. None: the price of the server is not known."""

    running: float | None
    upkeep: float

    @property
    def total(self) -> float | None:
        return None if self.running is None else self.running + self.upkeep


def cost_of(rung: Rung, *, prices: Prices, answers: Answers) -> Cost:
    """This machine is paid by the hour: for the seconds the answers took, and for every new set-up."""
    per_second = prices.per_hour / 3600
    paid = rung.use.paid_per_request
    running: float | None = 1000 * rung.use.seconds_per_request * per_second
    if rung.is_remote:
        running = None if paid is None else 1000 * paid
    setups = SETUPS_A_MONTH[answers.facts_change or "rarely"]
    return Cost(running, setups * rung.use.setup_s * per_second * 1000 / prices.requests_a_month)


def cheapest_first(rungs: Sequence[Rung], *, prices: Prices, answers: Answers) -> list[Rung]:
    """By total cost; an unknown price counts as the highest, and at the same cost the simpler kind comes first."""

    def key(rung: Rung) -> tuple[float, int, str]:
        total = cost_of(rung, prices=prices, answers=answers).total
        return (float("inf") if total is None else total, rung.order, rung.name)

    return sorted(rungs, key=key)


def barred(rung: Rung, answers: Answers) -> str | None:
    """Why a static answer rules the rung out, or None."""
    if answers.cite and not KINDS[rung.kind].cites:
        return "it names no sources, and sources must be cited"
    if answers.data_may_leave is False and rung.leaves:
        return "the data may not leave the house"
    return None
