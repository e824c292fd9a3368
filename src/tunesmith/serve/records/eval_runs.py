"""Runs of evals and their output items: a row each; a run's counts move in the transaction that adds an item.

Not here: what is asked and graded (serve.eval_runs), bodies (wire.evals). An item has its place in the data source, and
the database takes each place once: a run that goes on after a crash, or in two processes, counts every row once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import JSON, Column, Connection, Integer, String, Table, UniqueConstraint, func, select
from sqlalchemy.exc import IntegrityError

from tunesmith.database import METADATA, transaction
from tunesmith.serve.records.outbox import announce
from tunesmith.serve.records.paging import Cursor, is_id, read_page

OPEN = ("queued", "in_progress")
OUTCOMES = {"pass": "passed", "fail": "failed", "error": "errored"}  # an item's status -> where it counts

EVAL_RUNS = Table(
    "eval_run",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("eval_id", String, nullable=False, index=True),
    Column("created", Integer, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("turn", Integer, nullable=False),  # when it was last worked on, among all runs
    Column("name", String, nullable=False),
    Column("total", Integer, nullable=False),  # rows of its data source
    *(Column(name, JSON, nullable=False) for name in ("labels", "source", "chosen", "counts", "tallies", "usage")),
    Column("error", JSON),
    sqlite_autoincrement=True,
)
EVAL_ITEMS = Table(
    "eval_item",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("eval_id", String, nullable=False),
    Column("run_id", String, nullable=False),
    Column("position", Integer, nullable=False),  # of the row in the data source, from 0
    Column("created", Integer, nullable=False),
    Column("status", String, nullable=False),
    *(Column(name, JSON, nullable=False) for name in ("item", "results", "sample")),
    UniqueConstraint("run_id", "position"),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, slots=True)
class EvalRun:
    """`chosen` are the ids of stored completions, where they are its rows. `tallies` has passed, failed, errored of
    each criterion; `usage` has calls, prompt and completion tokens of each model asked."""

    id: str
    owner: str
    eval_id: str
    created: int
    status: str
    name: str
    total: int
    labels: dict[str, str]
    source: dict[str, Any]
    chosen: list[str]
    counts: dict[str, int]
    tallies: list[dict[str, int]]
    usage: dict[str, list[int]]
    error: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One row, answered and graded. `usage` is what it adds to its run's."""

    owner: str
    eval_id: str
    run_id: str
    position: int
    status: str  # pass, fail or error
    item: dict[str, Any]
    results: list[dict[str, Any]]
    sample: dict[str, Any]
    id: str = field(default_factory=lambda: f"outputitem_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


def new_run(owner: str, eval_id: str, *, name: str | None, source: dict[str, Any], criteria: int) -> EvalRun:
    """A run that is not in the database yet."""
    id = f"evalrun_{secrets.token_hex(12)}"
    empty = {"passed": 0, "failed": 0, "errored": 0}
    return EvalRun(
        id=id, owner=owner, eval_id=eval_id, created=int(time.time()), status="queued", name=name or id, total=0,
        labels={}, source=source, chosen=[], counts=empty, tallies=[dict(empty) for _ in range(criteria)], usage={},
    )  # fmt: skip


def add_run(run: EvalRun) -> None:
    values = {name: getattr(run, name) for name in run.__slots__}
    with transaction() as connection:
        connection.execute(EVAL_RUNS.insert().values(**values, turn=0))


def find_run(id: str, *, eval_id: str, owner: str) -> EvalRun | None:
    if not is_id(id):
        return None
    with transaction() as connection:
        row = connection.execute(select(EVAL_RUNS).where(EVAL_RUNS.c.id == id, *_seen(owner, eval_id))).mappings()
        found = row.first()
    return _run(found) if found else None


def list_runs(owner: str, eval_id: str, *, status: str | None, cursor: Cursor) -> tuple[list[EvalRun], bool]:
    where = [EVAL_RUNS.c.eval_id == eval_id, EVAL_RUNS.c.status != "deleted"]
    where += [EVAL_RUNS.c.status == status] if status else []
    with transaction() as connection:
        rows, more = read_page(connection, EVAL_RUNS, owner=owner, where=where, cursor=cursor, what="eval run")
    return [_run(row) for row in rows], more


def end_run(id: str, status: str, *, error: dict[str, str] | None = None) -> bool:
    """Move an open run to its end, and announce it. False when it has come to another one already."""
    which = EVAL_RUNS.c.id == id, EVAL_RUNS.c.status.in_(OPEN)
    with transaction() as connection:
        moved = connection.execute(EVAL_RUNS.update().where(*which).values(status=status, error=error))
        if moved.rowcount:
            announce(connection, f"eval.run.{'succeeded' if status == 'completed' else status}", about=id)
    return bool(moved.rowcount)


def forget_runs(connection: Connection, *, owner: str, eval_id: str, id: str | None = None) -> bool:
    """One run of an eval, or all of them, with their items. False when there was none."""
    blank: dict[str, Any] = {
        "name": "",
        "labels": {},
        "source": {},
        "chosen": [],
        "usage": {},
        "status": "deleted",
        "error": None,
    }
    which = [*_seen(owner, eval_id), *([EVAL_RUNS.c.id == id] if id else [])]
    gone = connection.execute(EVAL_RUNS.update().where(*which).values(**blank))
    items = [EVAL_ITEMS.c.owner == owner, EVAL_ITEMS.c.eval_id == eval_id]
    items += [EVAL_ITEMS.c.run_id == id] if id else []
    if gone.rowcount:
        connection.execute(EVAL_ITEMS.delete().where(*items))
    return bool(gone.rowcount)


def delete_run(id: str, *, owner: str, eval_id: str) -> bool:
    if not is_id(id):
        return False
    with transaction() as connection:
        return forget_runs(connection, owner=owner, eval_id=eval_id, id=id)


# -- work ----------------------------------------------------------------------------------------------------------


def claim_run() -> EvalRun | None:
    """The open run, of any owner, that has waited longest since it was last worked on; none when all have ended."""
    turn = EVAL_RUNS.c.turn
    with transaction() as connection:
        waiting = select(EVAL_RUNS).where(EVAL_RUNS.c.status.in_(OPEN)).order_by(turn, EVAL_RUNS.c.number).limit(1)
        row = connection.execute(waiting).mappings().first()
        if row is None:
            return None
        last = connection.execute(select(func.max(turn))).scalar() or 0
        changes = EVAL_RUNS.update().where(EVAL_RUNS.c.id == row["id"], EVAL_RUNS.c.status.in_(OPEN))
        connection.execute(changes.values(status="in_progress", turn=last + 1))
    return _run({**row, "status": "in_progress"})


def open_runs() -> dict[str, int]:
    """How many of all owners wait or run, by status."""
    counted = select(EVAL_RUNS.c.status, func.count()).where(EVAL_RUNS.c.status.in_(OPEN)).group_by(EVAL_RUNS.c.status)
    with transaction() as connection:
        return {str(status): int(count) for status, count in connection.execute(counted)}


def done_positions(run_id: str) -> set[int]:
    with transaction() as connection:
        return set(connection.execute(select(EVAL_ITEMS.c.position).where(EVAL_ITEMS.c.run_id == run_id)).scalars())


def keep_item(item: EvalItem, *, usage: dict[str, list[int]]) -> bool:
    """Add a row's item, and what it counts, in one transaction. False when the run has ended, or the row was there."""
    try:
        with transaction() as connection:
            chosen = select(EVAL_RUNS).where(EVAL_RUNS.c.id == item.run_id, EVAL_RUNS.c.status == "in_progress")
            run = connection.execute(chosen.with_for_update()).mappings().first()
            if run is None:
                return False
            connection.execute(EVAL_ITEMS.insert().values(**{name: getattr(item, name) for name in item.__slots__}))
            counts = _raised(run["counts"], item.status)
            tallies = [
                _raised(tally, _outcome(result)) for tally, result in zip(run["tallies"], item.results, strict=False)
            ]
            values = {"counts": counts, "tallies": tallies or run["tallies"], "usage": _added(run["usage"], usage)}
            connection.execute(EVAL_RUNS.update().where(EVAL_RUNS.c.id == item.run_id).values(**values))
    except IntegrityError:  # the row is there already
        return False
    return True


def find_item(id: str, *, run_id: str, owner: str) -> EvalItem | None:
    if not is_id(id):
        return None
    which = EVAL_ITEMS.c.id == id, EVAL_ITEMS.c.run_id == run_id, EVAL_ITEMS.c.owner == owner
    with transaction() as connection:
        row = connection.execute(select(EVAL_ITEMS).where(*which)).mappings().first()
    return _item(row) if row else None


def list_items(owner: str, run_id: str, *, status: str | None, cursor: Cursor) -> tuple[list[EvalItem], bool]:
    where = [EVAL_ITEMS.c.run_id == run_id, *([EVAL_ITEMS.c.status == status] if status else [])]
    with transaction() as connection:
        rows, more = read_page(connection, EVAL_ITEMS, owner=owner, where=where, cursor=cursor, what="output item")
    return [_item(row) for row in rows], more


def _outcome(result: dict[str, Any]) -> str:
    return "error" if result.get("error") else "pass" if result["passed"] else "fail"


def _raised(counts: dict[str, int], status: str) -> dict[str, int]:
    name = OUTCOMES[status]
    return counts | {name: counts[name] + 1}


def _added(usage: dict[str, list[int]], more: dict[str, list[int]]) -> dict[str, list[int]]:
    sums = {name: [a + b for a, b in zip(usage.get(name, [0, 0, 0]), more[name], strict=True)] for name in more}
    return usage | sums


def _seen(owner: str, eval_id: str) -> Sequence[Any]:
    return EVAL_RUNS.c.owner == owner, EVAL_RUNS.c.eval_id == eval_id, EVAL_RUNS.c.status != "deleted"


def _run(row: Any) -> EvalRun:
    return EvalRun(**{name: row[name] for name in EvalRun.__slots__})


def _item(row: Any) -> EvalItem:
    return EvalItem(**{name: row[name] for name in EvalItem.__slots__})
