"""Rows to train on, to choose by, and to test on; and the proof that no test row chose anything.

Not here: reading and splitting files. What makes two rows the same question is given as a function.
Called by ladder and by the command `decide`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat import Example
from tunesmith.errors import RunError

Key = Callable[[Example], str]


@dataclass(frozen=True, slots=True)
class Rows:
    """`asked_again`: rows of the training file that ask what a test row asks, and were taken out."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    key: Key
    asked_again: int = 0

    def sets(self) -> dict[str, Sequence[Example]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that was chosen by measuring: among what, with what means, and the ids of the rows it looked at."""

    what: str
    chosen: str
    tried: Mapping[str, float]
    saw: Sequence[str]


def without(rows: Sequence[Example], test: Sequence[Example], *, key: Key) -> list[Example]:
    """The rows that ask nothing a test row asks."""
    asked = {key(example) for example in test}
    return [example for example in rows if key(example) not in asked]


def ids_of(examples: Iterable[Example]) -> list[str]:
    return sorted({example.id for example in examples})


def digest(ids: Iterable[str]) -> str:
    """sha256 of the sorted ids, one a line: anyone can compute it again from `rows.json`."""
    return hashlib.sha256("".join(f"{one}\n" for one in sorted(set(ids))).encode()).hexdigest()


def prove_apart(rows: Rows, choices: Sequence[Choice]) -> dict[str, Any]:
    """The hashes of the three sets and of what each choice saw. Raises RunError when a test row is among those."""
    test_ids, test_keys = set(ids_of(rows.test)), {rows.key(example) for example in rows.test}
    for name in ("train", "validation"):
        shared = [example for example in rows.sets()[name] if example.id in test_ids or rows.key(example) in test_keys]
        if shared:
            raise RunError(f"{len(shared)} {name} rows are test rows; nothing measured on them can be believed.")
    for choice in choices:
        if seen := test_ids.intersection(choice.saw):
            raise RunError(f"{choice.what} was chosen on {len(seen)} test rows; it cannot be believed.")
    return {
        "sets": {
            name: {"rows": len(examples), "sha256": digest(ids_of(examples))} for name, examples in rows.sets().items()
        },
        "disjoint": True,
        "asked_again": rows.asked_again,
        "choices": [
            {
                "what": one.what,
                "chosen": one.chosen,
                "tried": dict(one.tried),
                "rows": len(set(one.saw)),
                "sha256": digest(one.saw),
                "test_rows_seen": 0,
            }
            for one in choices
        ],
    }
