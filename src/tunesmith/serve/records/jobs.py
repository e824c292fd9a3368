"""Fine-tuning jobs as their owners know them: the table, and what a request does to a job.

Not here: who trains a job and how far it is (serve.records.queue), its events (serve.records.events), HTTP bodies
(serve.wire.jobs). Every function names the owner; a foreign job is found as little as one that never was.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import JSON, Column, Connection, Index, Integer, String, Table, UniqueConstraint, exists, func, select
from sqlalchemy.exc import IntegrityError

from tunesmith.database import METADATA, transaction
from tunesmith.serve.records.events import Event, add_events
from tunesmith.serve.records.outbox import announce

ENDED = ("succeeded", "failed", "cancelled")
TRAINING = ("running", "pausing")
STATES = ("validating_files", "queued", *TRAINING, "paused", *ENDED)
MOVED = {
    "cancelled": "The job was cancelled",
    "pausing": "The job is being paused: its checkpoint is written",
    "paused": "The job was paused",
    "queued": "The job was resumed, moving it to queued state",
    "validating_files": "The job was resumed",
}
RETRY_WINDOW_S = 900  # a client that repeats a request by itself does so within its timeout of ten minutes

JOBS = Table(
    "job",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order of the queue; never a time
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created", Integer, nullable=False),  # seconds since 1970, for people only
    Column("finished", Integer),
    Column("priority", Integer, nullable=False),  # higher first, among the jobs of owners with equally many running
    # Asked for
    Column("model", String, nullable=False),
    Column("training_file", String, nullable=False),
    Column("validation_file", String),
    Column("method", String, nullable=False),
    Column("asked", JSON(none_as_null=True), nullable=False),  # hyperparameters
    Column("seed", Integer, nullable=False),
    Column("suffix", String),
    Column("labels", JSON(none_as_null=True)),  # the API's metadata
    Column("integrations", JSON(none_as_null=True)),
    Column("request_key", String),  # Idempotency-Key
    Column("request_sha256", String, nullable=False),
    # Who trains it: see serve.records.queue
    Column("holder", String),
    Column("epoch", Integer, nullable=False),
    Column("beat", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),  # how often its training was begun or taken up after a loss
    Column("crashes", Integer, nullable=False),
    # What came of it
    Column("resolved", JSON(none_as_null=True)),  # hyperparameters with numbers in place of "auto"; none: not validated
    Column("estimated_finish", Integer),
    Column("trained_tokens", Integer),
    Column("fine_tuned_model", String),
    Column("result_files", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),  # code, message, param
    UniqueConstraint("owner", "request_key"),
    Index("job_waiting", "state", "holder"),
    Index("job_holder", "holder"),
    Index("job_of_owner", "owner", "number"),
)
LABELS = Table(
    "job_label",
    METADATA,
    Column("job", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the table; see its columns."""

    number: int
    id: str
    owner: str
    state: str
    created: int
    finished: int | None
    priority: int
    model: str
    training_file: str
    validation_file: str | None
    method: str
    asked: Mapping[str, Any]
    seed: int
    suffix: str | None
    labels: Mapping[str, str] | None
    integrations: Sequence[Mapping[str, Any]] | None
    request_key: str | None
    request_sha256: str
    holder: str | None
    epoch: int
    beat: int
    attempt: int
    crashes: int
    resolved: Mapping[str, Any] | None
    estimated_finish: int | None
    trained_tokens: int | None
    fine_tuned_model: str | None
    result_files: Sequence[str] | None
    error: Mapping[str, Any] | None


COLUMNS = tuple(JOBS.c[field.name] for field in fields(Job))


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a request asks for, checked. `request_sha256` is of its body, `request_key` its Idempotency-Key; `is_retry`
    when the client says that it repeats the request by itself."""

    model: str
    training_file: str
    validation_file: str | None
    method: str
    asked: Mapping[str, Any]
    seed: int | None
    suffix: str | None
    labels: Mapping[str, str] | None
    integrations: Sequence[Mapping[str, Any]] | None
    request_sha256: str
    request_key: str | None = None
    is_retry: bool = False
    priority: int = 0


class WrongStateError(Exception):
    """The job's state does not allow what was asked; the text says which it is."""


class ReusedKeyError(Exception):
    """An Idempotency-Key came again with another body."""


def create_job(order: JobOrder, *, owner: str, admit: Callable[[int], None] = lambda active: None) -> Job:
    """A new job, or the one that the same request has made before. `admit` may refuse a new one by raising: it is given
    how many jobs of the owner have not ended.

    OpenAI's clients repeat a POST whose answer they did not get, without a key but with a count of retries: such a
    repetition is known by its body. Raises ReusedKeyError.
    """
    try:
        return _create(order, owner, admit)
    except IntegrityError:  # where a database lets two transactions read before one writes: the key is taken by now
        return _create(order, owner, admit)


def _create(order: JobOrder, owner: str, admit: Callable[[int], None]) -> Job:
    now = int(time.time())
    with transaction() as connection:
        if found := _made_before(connection, order, owner, now):
            return found
        if connection.dialect.name == "postgresql":  # where another one could be counted before either is there
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"jobs of {owner}"))))
        mine = JOBS.c.owner == owner, JOBS.c.state.not_in(ENDED)
        admit(int(connection.execute(select(func.count()).select_from(JOBS).where(*mine)).scalar_one()))
        values = {name: getattr(order, name) for name in JobOrder.__slots__ if name not in ("is_retry", "seed")}
        seed = secrets.randbelow(2**31) if order.seed is None else order.seed
        values |= {"id": f"ftjob-{secrets.token_hex(12)}", "owner": owner, "state": "validating_files", "created": now}
        values |= {"seed": seed, "epoch": 0, "beat": 0, "attempt": 0, "crashes": 0}
        job = job_of(connection.execute(JOBS.insert().values(**values).returning(*COLUMNS)).mappings().one())
        if order.labels:
            rows = [{"job": job.id, "key": key, "value": value} for key, value in order.labels.items()]
            connection.execute(LABELS.insert(), rows)
        add_events(connection, job.id, events=[Event("created", f"Created fine-tuning job: {job.id}")], owner=owner)
    return job


def find_job(job_id: str, *, owner: str) -> Job | None:
    with transaction() as connection:
        return _find(connection, job_id, owner)


def list_jobs(
    *, owner: str, limit: int, after: int | None = None, labels: Mapping[str, str] | None = None, bare: bool = False
) -> list[Job]:
    """Newest first, at most `limit`, from the one before number `after` on; those that have all `labels`, or, when
    `bare`, those that have none."""
    wanted = select(*COLUMNS).where(JOBS.c.owner == owner)
    if after is not None:
        wanted = wanted.where(JOBS.c.number < after)
    for key, value in (labels or {}).items():
        has = exists().where(LABELS.c.job == JOBS.c.id, LABELS.c.key == key, LABELS.c.value == value)
        wanted = wanted.where(has)
    if bare:
        wanted = wanted.where(~exists().where(LABELS.c.job == JOBS.c.id))
    with transaction() as connection:
        rows = connection.execute(wanted.order_by(JOBS.c.number.desc()).limit(limit)).mappings()
        return [job_of(row) for row in rows]


def cancel_job(job_id: str, *, owner: str) -> Job | None:
    """The job, cancelled: nothing that its holder does later counts, and it ends its worker at its next beat.

    None when the owner has no such job. Raises WrongStateError for a job that has ended.
    """
    to = {state: "cancelled" for state in STATES if state not in ENDED}
    return _move(job_id, owner, to=to, finished=int(time.time()))


def pause_job(job_id: str, *, owner: str) -> Job | None:
    """The job, paused; `pausing` while its worker still writes a checkpoint. None and WrongStateError as above."""
    return _move(job_id, owner, to={"validating_files": "paused", "queued": "paused", "running": "pausing"})


def resume_job(job_id: str, *, owner: str) -> Job | None:
    """The job, back in the queue at its old place. None and WrongStateError as above."""
    return _move(job_id, owner, to={"paused": "queued"})


def _move(job_id: str, owner: str, *, to: Mapping[str, str], **values: Any) -> Job | None:
    with transaction() as connection:
        job = _find(connection, job_id, owner, lock=True)
        if job is None:
            return None
        if job.state not in to:
            raise WrongStateError(job.state)
        state = to[job.state]
        if state == "queued" and job.resolved is None:  # it was paused before its files were looked at
            state = "validating_files"
        changed = JOBS.update().where(JOBS.c.number == job.number).values(state=state, **values).returning(*COLUMNS)
        job = job_of(connection.execute(changed).mappings().one())
        add_events(connection, job.id, events=[Event(None, MOVED[state])], owner=owner)
        if state in ENDED:
            announce(connection, f"fine_tuning.job.{state}", about=job.id)
        return job


def _find(connection: Connection, job_id: str, owner: str, *, lock: bool = False) -> Job | None:
    wanted = select(*COLUMNS).where(JOBS.c.id == job_id, JOBS.c.owner == owner)
    row = connection.execute(wanted.with_for_update() if lock else wanted).mappings().first()
    return job_of(row) if row else None


def _made_before(connection: Connection, order: JobOrder, owner: str, now: int) -> Job | None:
    mine = select(*COLUMNS).where(JOBS.c.owner == owner).order_by(JOBS.c.number.desc()).limit(1)
    if order.request_key is not None:
        row = connection.execute(mine.where(JOBS.c.request_key == order.request_key)).mappings().first()
        if row and row["request_sha256"] != order.request_sha256:
            raise ReusedKeyError
        return job_of(row) if row else None
    if not order.is_retry:
        return None
    same = mine.where(JOBS.c.request_sha256 == order.request_sha256, JOBS.c.created >= now - RETRY_WINDOW_S)
    row = connection.execute(same).mappings().first()
    return job_of(row) if row else None


def job_of(row: Any) -> Job:
    """The job in a row of COLUMNS."""
    return Job(**row)
