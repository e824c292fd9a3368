"""The row ledger: every line of a source file ends in one place, with a reason, and the counts add up.

Not here: the files of a Dataset version (dataset).
Called by data.dataset; a run keeps the same rows (as JSON lines) for what its rendering dropped or masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.load import Loaded, SourceRow
from tunesmith.errors import RunError

STATUSES = ("trained", "masked", "truncated", "dropped", "rejected", "held_out")


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """Where one physical line (1-based) of the source ended.

    `example` is the Example's id, None if there is none; `row` is the number the row keeps in a named data set.
    """

    line: int
    example: str | None
    status: str
    reason: str = ""
    row: int | None = None

    def as_dict(self) -> dict[str, Any]:
        body = {"line": self.line, "example": self.example, "status": self.status, "reason": self.reason}
        return body if self.row is None else body | {"row": self.row}


def ledger_of(loaded: Loaded, ids: Sequence[str] | None = None) -> list[LedgerRow]:
    """The ledger of a file as it was read: rows trained, blank lines dropped, faulty lines rejected.

    `ids` are the examples' ids where the caller has them already.
    """
    ids = [row.example.id for row in loaded.examples] if ids is None else ids
    ledger = [LedgerRow(row.line, id, "trained") for row, id in zip(loaded.examples, ids, strict=True)]
    ledger += [LedgerRow(line, None, "dropped", "blank line") for line in loaded.blank_lines]
    inside = loaded.lines_by_note.get("table", ())
    ledger += [
        LedgerRow(line, None, "dropped", "the table's header, or inside a cell of the row above") for line in inside
    ]
    rejected: dict[int, str] = {}
    for problem in loaded.problems:
        if problem.line is not None:
            rejected.setdefault(problem.line, problem.what)
    ledger += [LedgerRow(line, None, "rejected", what) for line, what in rejected.items()]
    return sorted(ledger, key=lambda row: row.line)


def complete_ledger(rows: Iterable[SourceRow], ledger: Iterable[LedgerRow]) -> list[LedgerRow]:
    """`ledger` with each of `rows` that it does not name added as trained, in the order of the lines."""
    named = list(ledger)
    lines = {row.line for row in named}
    named += [LedgerRow(row.line, row.example.id, "trained") for row in rows if row.line not in lines]
    return sorted(named, key=lambda row: row.line)


def counts_of(ledger: Iterable[LedgerRow]) -> dict[str, int]:
    """Number of lines for each status, in the order of STATUSES, without zeros."""
    counts = Counter(row.status for row in ledger)
    return {status: counts[status] for status in STATUSES if counts[status]}


def check_conservation(ledger: Sequence[LedgerRow], num_lines: int) -> None:
    """Prove that lines 1 to `num_lines` are each in the ledger exactly once, with a known status.

    Raises:
        RunError: a line is missing, named twice, outside the file, or has an unknown status.
    """
    unknown = sorted({row.status for row in ledger} - set(STATUSES))
    times = Counter(row.line for row in ledger)
    faults = {
        "missing": [line for line in range(1, num_lines + 1) if line not in times],
        "named twice": sorted(line for line, count in times.items() if count > 1),
        "outside the file": sorted(line for line in times if not 1 <= line <= num_lines),
    }
    words = [f"{name}: {_some(lines)}" for name, lines in faults.items() if lines]
    words += [f"unknown status: {', '.join(unknown)}"] if unknown else []
    if words:
        what = f"the row ledger does not account for each of {num_lines} lines exactly once ({'; '.join(words)})."
        raise RunError(what, "This is a mistake in tunesmith: please report it with the file's first lines.")


def _some(lines: Sequence[int]) -> str:
    return ", ".join(str(line) for line in lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
