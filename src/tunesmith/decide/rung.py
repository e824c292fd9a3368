"""A rung of the ladder: one way of answering, what its answers scored, and what using it takes.

Not here: measuring it (ladder), its price (costs), choosing (verdict). Plain data for everything in this folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """What rungs of a kind have in common. `upkeep`: how it ages, and what is done again when the data change."""

    upkeep: str
    cites: bool = False  # its answers come with the passages they stand on


# In the order of work: of two rungs with the same cost, the one further up is preferred.
KINDS: Mapping[str, Kind] = {
    "floor": Kind("Fitted again in seconds; a new label needs rows of its own."),
    "prompt": Kind("A text to edit. It ages when the task changes, or the base is replaced."),
    "drafted prompt": Kind("A text to edit; after a change of the labels or fields it is drafted and chosen again."),
    "few-shot": Kind("Its examples are replaced when they are no longer right."),
    "few-shot nearest": Kind("New rows are added to its examples, and work at once."),
    "retrieval": Kind("Changed documents are indexed again, alone; the answers follow at once.", cites=True),
    "fine-tune": Kind("What it learned stays as it was: new facts, labels or a new style need rows and a training."),
    "fine-tune + retrieval": Kind("Facts follow the index; form and style need a new training.", cites=True),
    "big model": Kind("Somebody else's: it may change or end without your doing, and is to be measured again then."),
}


@dataclass(frozen=True, slots=True)
class Use:
    """What using a rung takes, as measured. `paid_per_request`: to whoever runs the server; None: nobody is paid, or
    with `leaves` in the rung, the price is not known."""

    seconds_per_request: float  # of this machine, asked in batches
    latency_s: float  # of one request alone, the median
    prompt_tokens: float
    completion_tokens: float
    memory_bytes: int | None  # None: on another machine
    setup_s: float  # training, indexing, choosing
    paid_per_request: float | None = None


@dataclass(frozen=True, slots=True)
class Rung:
    """`scores` are those of the test rows, 0 to 1, in the same order for every rung; `low` and `high` the 95 % interval
    of their mean."""

    name: str
    kind: str
    scores: Sequence[float]
    low: float
    high: float
    use: Use
    is_remote: bool = False  # answered by a server that is paid by request, not by this machine
    leaves: bool = False  # the data leave the house
    notes: Sequence[str] = ()
    cut: str = ""  # what the budget cut short in its set-up

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def order(self) -> int:
        return list(KINDS).index(self.kind)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rung_from(values: Mapping[str, Any]) -> Rung:
    """The rung that `as_dict` wrote."""
    return Rung(**{**values, "use": Use(**values["use"])})
