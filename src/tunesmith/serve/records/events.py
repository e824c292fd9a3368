"""What happened to a fine-tuning job, each thing once, and the checkpoints that can be asked.

Not here: what is told in which words (jobs.watch, serve.records.jobs), HTTP bodies (serve.wire.jobs).
A worker that starts again tells what it told before; a key for each thing that happened keeps the second telling out.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import JSON, Column, Connection, Index, Integer, String, Table, select

from tunesmith.database import METADATA, transaction

Level = Literal["info", "warn", "error"]

EVENTS = Table(
    "job_event",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),  # made of the job and the key, so it is there once
    Column("job", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("created", Integer, nullable=False),
    Column("level", String, nullable=False),
    Column("message", String, nullable=False),
    Column("type", String, nullable=False),  # message or metrics
    Column("data", JSON(none_as_null=True)),
    Index("job_event_of_job", "job", "number"),
)
CHECKPOINTS = Table(
    "job_checkpoint",
    METADATA,
    Column("id", String, primary_key=True),
    Column("job", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("created", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("metrics", JSON(none_as_null=True), nullable=False),
    Index("job_checkpoint_of_job", "job", "step", unique=True),
)


@dataclass(frozen=True, slots=True)
class Event:
    """`key` names what happened, once in a job's life; without one the caller's transaction happens once."""

    key: str | None
    message: str
    level: Level = "info"
    data: Mapping[str, Any] | None = None  # metrics; an event with them is of the type "metrics"


@dataclass(frozen=True, slots=True)
class StoredEvent:
    number: int
    id: str
    created: int
    level: str
    message: str
    type: str
    data: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A kept step of a training. `model` is the name under which it answers."""

    id: str
    job: str
    created: int
    step: int
    model: str
    metrics: Mapping[str, float | None]


def add_events(connection: Connection, job_id: str, *, events: Sequence[Event], owner: str) -> None:
    """Add those that were not told before, in the caller's transaction, which has locked the job's row."""
    now = int(time.time())
    rows = {}
    for event in events:
        happened = event.key or f"once {secrets.token_hex(12)}"
        event_id = f"ftevent-{hashlib.sha256(f'{job_id} {happened}'.encode()).hexdigest()[:24]}"
        values = {"id": event_id, "job": job_id, "owner": owner, "created": now, "level": event.level}
        kind = "message" if event.data is None else "metrics"
        rows[event_id] = values | {"message": event.message, "type": kind, "data": event.data}
    if not rows:
        return
    told = set(connection.execute(select(EVENTS.c.id).where(EVENTS.c.id.in_(rows))).scalars())
    if new := [row for event_id, row in rows.items() if event_id not in told]:
        connection.execute(EVENTS.insert(), new)


def list_events(job_id: str, *, owner: str, limit: int, after: str | None = None) -> list[StoredEvent] | None:
    """Newest first, at most `limit`, from the one before `after` on; None when the job has no event `after`."""
    mine = select(EVENTS).where(EVENTS.c.job == job_id, EVENTS.c.owner == owner)
    names = StoredEvent.__slots__
    with transaction() as connection:
        if after is not None:
            found = connection.execute(mine.where(EVENTS.c.id == after)).mappings().first()
            if found is None:
                return None
            mine = mine.where(EVENTS.c.number < found["number"])
        rows = connection.execute(mine.order_by(EVENTS.c.number.desc()).limit(limit)).mappings()
        return [StoredEvent(**{name: row[name] for name in names}) for row in rows]


def add_checkpoints(connection: Connection, checkpoints: Sequence[Checkpoint], *, owner: str) -> None:
    """In the caller's transaction."""
    if checkpoints:
        names = Checkpoint.__slots__
        rows = [{name: getattr(one, name) for name in names} | {"owner": owner} for one in checkpoints]
        connection.execute(CHECKPOINTS.insert(), rows)


def drop_checkpoints(connection: Connection, job_id: str, *, keep: int) -> list[str]:
    """Forget all but the job's newest `keep`, in the caller's transaction; gives the names of their models."""
    mine = select(CHECKPOINTS).where(CHECKPOINTS.c.job == job_id).order_by(CHECKPOINTS.c.step.desc())
    old = connection.execute(mine).mappings().all()[keep:]
    if old:
        connection.execute(CHECKPOINTS.delete().where(CHECKPOINTS.c.id.in_([row["id"] for row in old])))
    return [str(row["model"]) for row in old]


def list_checkpoints(job_id: str, *, owner: str) -> list[Checkpoint]:
    """All of a job, newest first: there are never more than a few."""
    mine = select(CHECKPOINTS).where(CHECKPOINTS.c.job == job_id, CHECKPOINTS.c.owner == owner)
    names = Checkpoint.__slots__
    with transaction() as connection:
        rows = connection.execute(mine.order_by(CHECKPOINTS.c.step.desc())).mappings()
        return [Checkpoint(**{name: row[name] for name in names}) for row in rows]
