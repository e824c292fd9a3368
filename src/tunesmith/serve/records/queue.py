"""The queue of fine-tuning jobs: who works on which, so that nobody works on one twice and none is lost.

Not here: what an owner does to a job (serve.records.jobs), the work (jobs). A claim carries an epoch, one higher than
the job's last: whatever an earlier holder still writes is refused. No wall clock decides anything: a holder raises a
beat, and whoever sees the same beat for long enough on its own clock takes the holder for gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from tunesmith.database import transaction
from tunesmith.serve.records.events import Checkpoint, Event, add_checkpoints, add_events, drop_checkpoints
from tunesmith.serve.records.files import store_result
from tunesmith.serve.records.jobs import COLUMNS, ENDED, JOBS, TRAINING, Job, job_of
from tunesmith.serve.records.models import Made, publish, withdraw_models
from tunesmith.serve.records.outbox import announce

LEASE_S = 60.0
Clock = Callable[[], float]


class StaleClaimError(Exception):
    """The job is not this holder's any more, or was cancelled or paused meanwhile: the write was refused."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job as it was when `holder` took it, under the epoch that all its writes carry."""

    job: Job
    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a training made: the model, and the figures of each step as CSV."""

    made: Made
    step_metrics: bytes


def claim(holder: str, *, states: Sequence[str]) -> Claim | None:
    """Take the next job in one of `states` that nobody holds, or None.

    Next is the one whose owner has the fewest in training, then that of the highest priority, then the oldest.
    """
    waiting, held = JOBS.alias("waiting"), JOBS.alias("held")
    busy = (
        select(held.c.owner, func.count().label("jobs"))
        .where(held.c.holder.is_not(None), held.c.state.in_(TRAINING))
        .group_by(held.c.owner)
        .subquery("busy")
    )
    first = (
        select(waiting.c.number)
        .outerjoin_from(waiting, busy, busy.c.owner == waiting.c.owner)
        .where(waiting.c.holder.is_(None), waiting.c.state.in_(states))
        .order_by(func.coalesce(busy.c.jobs, 0), waiting.c.priority.desc(), waiting.c.number)
        .limit(1)
        .with_for_update(skip_locked=True, of=waiting)  # PostgreSQL; SQLite has locked all from the start
        .scalar_subquery()
    )
    taken = JOBS.update().where(JOBS.c.number == first, JOBS.c.holder.is_(None))
    with transaction() as connection:
        values = {"holder": holder, "epoch": JOBS.c.epoch + 1}
        row = connection.execute(taken.values(**values).returning(*COLUMNS)).mappings().first()
    return Claim(job_of(row), holder, int(row["epoch"])) if row else None


def look(claim: Claim) -> str:
    """The job's state now. Raises StaleClaimError when it is not this holder's any more."""
    with transaction() as connection:
        state = connection.execute(select(JOBS.c.state).where(*_mine(claim))).scalar()
    return _held(claim, state)


def beat(claim: Claim) -> str:
    """The same, and say that the holder is alive."""
    with transaction() as connection:
        alive = JOBS.update().where(*_mine(claim)).values(beat=JOBS.c.beat + 1).returning(JOBS.c.state)
        state = connection.execute(alive).scalar()
    return _held(claim, state)


def write(claim: Claim, *, events: Sequence[Event] = (), only_in: Sequence[str] = (), **values: Any) -> None:
    """Change columns of the job and add to its events. Raises StaleClaimError, and changes nothing, when the claim is
    another's by now or the job is not in one of the states `only_in`, or has ended."""
    allowed = JOBS.c.state.in_(only_in) if only_in else JOBS.c.state.not_in(ENDED)
    with transaction() as connection:
        _change(connection, claim, allowed, **values)
        add_events(connection, claim.job.id, events=events, owner=claim.job.owner)


def publish_checkpoint(claim: Claim, made: Made, *, checkpoint: Checkpoint, keep: int) -> list[Path]:
    """Make a checkpoint known while its job trains. The job's oldest beyond `keep` go from the lists; their folders are
    given. Raises StaleClaimError, and nothing is published, as `write` does."""
    job = claim.job
    with transaction() as connection:
        _change(connection, claim, JOBS.c.state.in_(TRAINING))
        publish(connection, made)
        add_checkpoints(connection, [checkpoint], owner=job.owner)
        event = Event(f"checkpoint {checkpoint.step}", f"Checkpoint created at step {checkpoint.step}")
        add_events(connection, job.id, events=[event], owner=job.owner)
        return withdraw_models(connection, drop_checkpoints(connection, job.id, keep=keep))


def finish(claim: Claim, result: Result, *, trained_tokens: int) -> None:
    """Succeed: the model, the result file and the state in one transaction. Raises StaleClaimError, and nothing is
    published, as `write` does."""
    job, now = claim.job, int(time.time())
    name = result.made.name
    with transaction() as connection:
        values = {"state": "succeeded", "finished": now, "fine_tuned_model": name, "trained_tokens": trained_tokens}
        _change(connection, claim, JOBS.c.state.in_(TRAINING), holder=None, **values)
        publish(connection, result.made)
        events = [Event("model", f"New fine-tuned model created: {name}")]
        events.append(Event("succeeded", "The job has successfully completed"))
        add_events(connection, job.id, events=events, owner=job.owner)
        file = store_result(
            connection,
            owner=job.owner,
            filename="step_metrics.csv",
            purpose="fine-tune-results",
            data=result.step_metrics,
        )
        connection.execute(JOBS.update().where(JOBS.c.number == job.number).values(result_files=[file]))


def fail(claim: Claim, message: str, *, code: str, param: str | None = None, withdraw: bool = False) -> None:
    """End the job with a reason; with `withdraw` its checkpoints are taken back. Raises StaleClaimError as `write`."""
    values: dict[str, Any] = {"state": "failed", "finished": int(time.time()), "holder": None}
    error = {"code": code, "message": message, "param": param}
    with transaction() as connection:
        _change(connection, claim, JOBS.c.state.not_in(ENDED), error=error, **values)
        event = Event("failed", f"The job failed: {message}", level="error")
        add_events(connection, claim.job.id, events=[event], owner=claim.job.owner)
        if withdraw:
            withdraw_models(connection, drop_checkpoints(connection, claim.job.id, keep=0))


def release(claim: Claim) -> None:
    """Let go of the job, in whatever state it is; nothing where it was another's already."""
    with transaction() as connection:
        connection.execute(JOBS.update().where(*_mine(claim)).values(holder=None))


def release_all() -> int:
    """Let go of every job, because this process is the only one there is; how many were held. Not for a database that
    several servers share."""
    with transaction() as connection:
        freed = connection.execute(JOBS.update().where(JOBS.c.holder.is_not(None)).values(holder=None))
    return int(freed.rowcount)


def is_shared() -> bool:
    """Whether other servers may work on the same queue: not in SQLite, whose home folder one server locks."""
    with transaction() as connection:
        return connection.dialect.name != "sqlite"


class Leases:
    """What one process sees of the others' beats, on its own monotonic clock."""

    def __init__(self, own: Sequence[str], *, lease_s: float = LEASE_S, clock: Clock = time.monotonic) -> None:
        self._own, self._lease_s, self._clock = own, lease_s, clock
        self._seen: dict[int, tuple[tuple[int, int], float]] = {}  # job -> (epoch, beat), since when

    def free_expired(self) -> int:
        """Let go of the jobs whose (epoch, beat) has stood still for the length of a lease; how many they were."""
        wanted = select(JOBS.c.number, JOBS.c.epoch, JOBS.c.beat)
        wanted = wanted.where(JOBS.c.holder.is_not(None), JOBS.c.holder.not_in(self._own))
        with transaction() as connection:
            held = {row.number: (row.epoch, row.beat) for row in connection.execute(wanted)}
            now = self._clock()
            before, self._seen = self._seen, {}
            for number, life in held.items():
                known = before.get(number)
                self._seen[number] = known if known and known[0] == life else (life, now)
            expired = [number for number, (_, since) in self._seen.items() if now - since >= self._lease_s]
            freed = 0
            for number in expired:
                epoch, last = held[number]
                still = (JOBS.c.number == number, JOBS.c.epoch == epoch, JOBS.c.beat == last)
                freed += connection.execute(JOBS.update().where(*still).values(holder=None)).rowcount
        return freed


def _change(connection: Connection, claim: Claim, allowed: ColumnElement[bool], **values: Any) -> None:
    """Change columns of the job, and say that its holder is alive; an end is announced. Raises StaleClaimError."""
    changed = JOBS.update().where(*_mine(claim), allowed).values(beat=JOBS.c.beat + 1, **values)
    if connection.execute(changed).rowcount != 1:
        raise StaleClaimError(claim.job.id)
    if values.get("state") in ENDED:
        announce(connection, f"fine_tuning.job.{values['state']}", about=claim.job.id)


def _mine(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return JOBS.c.number == claim.job.number, JOBS.c.epoch == claim.epoch, JOBS.c.holder == claim.holder


def _held(claim: Claim, state: str | None) -> str:
    if state is None:
        raise StaleClaimError(claim.job.id)
    return state
