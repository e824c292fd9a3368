"""What changed between two versions: rows added, removed, edited, moved; enough to make the second of the first.

Not here: which row is which (history's numbers, or matching), colours and columns (cli.side_by_side).
Called by the commands `data diff` and `data why`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.chat import Example
from tunesmith.data.dataset import Dataset, Examples
from tunesmith.data.versions.history import name_of, numbers_of
from tunesmith.data.versions.matching import match

Kind = Literal["added", "removed", "edited", "moved"]
KINDS: tuple[Kind, ...] = ("added", "removed", "edited", "moved")


@dataclass(frozen=True, slots=True)
class Side:
    """A row in one version: its place among the rows (from 0), its line in the source, its number if it has one."""

    index: int
    line: int
    number: int | None
    id: str
    example: Example

    def as_dict(self) -> dict[str, Any]:
        return {"line": self.line, "row": self.number, "id": self.id}


@dataclass(frozen=True, slots=True)
class Change:
    """`before` is None for a row that was added, `after` for one that was removed."""

    kind: Kind
    before: Side | None
    after: Side | None


def diff(before: Dataset, after: Dataset) -> list[Change]:
    """The changes in the order of the rows after; removed ones stand where they stood before.

    Rows of the same named data set are known by their numbers, all others by `matching.match`.
    """
    old, new = _Sides(before), _Sides(after)
    partner = _partners(before, after)
    kept = [old_index for old_index in partner if old_index >= 0]
    still = _longest_rising(kept)
    changes: list[Change] = []
    for index, old_index in enumerate(partner):
        if old_index < 0:
            changes.append(Change("added", None, new[index]))
        elif before.ids[old_index] != after.ids[index]:
            changes.append(Change("edited", old[old_index], new[index]))
        elif old_index not in still:
            changes.append(Change("moved", old[old_index], new[index]))
    changes += [Change("removed", old[index], None) for index in set(range(len(before.texts))).difference(kept)]
    return sorted(changes, key=lambda change: (change.after or change.before).index)  # type: ignore[union-attr]


def apply(rows: Sequence[Example], changes: Sequence[Change]) -> list[Example]:
    """The rows of the version after, from those of the version before."""
    touched = {change.before.index for change in changes if change.before}
    placed = {change.after.index: change.after.example for change in changes if change.after}
    untouched = iter([row for index, row in enumerate(rows) if index not in touched])
    total = len(rows) - len(touched) + len(placed)
    return [placed[index] if index in placed else next(untouched) for index in range(total)]


class _Sides:
    """The rows of a version as sides of a change; only those asked for are read."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.numbers, self.examples = dataset, dataset.row_numbers, Examples(dataset.texts)

    def __getitem__(self, index: int) -> Side:
        line, id = self.dataset.lines[index], self.dataset.ids[index]
        return Side(index, line, self.numbers[index], id, self.examples[index])


def _partners(before: Dataset, after: Dataset) -> list[int]:
    name = name_of(before.operations)
    if name is not None and name == name_of(after.operations):
        index_of = {number: index for index, number in enumerate(numbers_of(before))}
        return [index_of.get(number, -1) for number in numbers_of(after)]
    return match(Examples(before.texts), Examples(after.texts), ids=(before.ids, after.ids))


def _longest_rising(values: Sequence[int]) -> set[int]:
    """The members of a longest rising subsequence of different numbers (patience sorting, n log n)."""
    tops: list[int] = []  # smallest last value of a rising run of each length
    before: dict[int, int | None] = {}
    for value in values:
        length = bisect_left(tops, value)
        before[value] = tops[length - 1] if length else None
        tops[length : length + 1] = [value]
    chosen: set[int] = set()
    value_or_none = tops[-1] if tops else None
    while value_or_none is not None:
        chosen.add(value_or_none)
        value_or_none = before[value_or_none]
    return chosen
