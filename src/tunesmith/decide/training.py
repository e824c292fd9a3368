"""How much of a training fits into some seconds: rows, epochs, and the validation rows its loss is watched on.

Not here: the training (cli.decide_rungs calls it). Estimates come from a small training, which is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CUT_BATCH_ROWS = 8  # of a training that is cut short: twice the steps in little more time
CUT_WATCHED = 24  # validation rows of one: a hundred, looked at three times, would take longer than it does
LOOKS = 2  # at the validation rows, beside those of the epochs: before the first step, and to prove what was trained
SLACK = 1.05  # how far over its seconds an estimate may be


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a training: `fixed`, and for each row in each epoch."""

    fixed: float
    each: float


@dataclass(frozen=True, slots=True)
class Extent:
    """How many rows are trained on, in how many epochs, and on how many validation rows the loss is watched."""

    rows: int
    epochs: int
    watched: int
    is_cut: bool = False

    def seconds(self, pace: Pace) -> float:
        """A row that is only read forward takes a third of the time of one that is learned from."""
        looks = self.epochs * self.settings.get("validations_per_epoch", 2) + LOOKS
        return pace.fixed + (self.epochs * self.rows + looks * self.watched / 3) * pace.each

    @property
    def settings(self) -> dict[str, Any]:
        """What the recipe says of it beside the epochs."""
        return {"batch_size": CUT_BATCH_ROWS, "validations_per_epoch": 1} if self.is_cut else {}


def extent_within(seconds: float, whole: Extent, *, pace: Pace) -> Extent:
    """As much of `whole` as fits. A row seen once teaches more than another seen again, so epochs are given up before
    rows; `rows` is 0 where nothing fits."""
    limit_s = SLACK * seconds
    if whole.seconds(pace) <= limit_s:
        return whole
    watched = min(CUT_WATCHED, whole.watched)
    epochs = whole.epochs
    while epochs > 1 and Extent(whole.rows, epochs, watched, is_cut=True).seconds(pace) > limit_s:
        epochs -= 1
    fixed_s = Extent(0, epochs, watched, is_cut=True).seconds(pace)
    fitting = int((limit_s - fixed_s) / (epochs * pace.each))
    return Extent(max(0, min(whole.rows, fitting)), epochs, watched, is_cut=True)
