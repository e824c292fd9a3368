"""The queue of fine-tuning jobs: who works on which, so that nobody works on one twice and none is lost.

Not here: what an owner does to a job (serve.records.jobs), the work (jobs). A claim carries an epoch, one higher than
the job's last: whatever an earlier holder still writes is refused. No wall clock decides anything: a holder raises a
beat, and whoever sees the same beat for long enough on its own clock takes the holder for gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select

from tunesmith.database import transaction
from tunesmith.serve.records.events import Checkpoint, Event, add_checkpoints, add_events
from tunesmith.serve.records.files import store_result
from tunesmith.serve.records.jobs import COLUMNS, ENDED, JOBS, TRAINING, Job, job_of
from tunesmith.serve.records.models import Made, publish

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
    """What a training made: the model first, then its checkpoints, and the figures of each step as CSV."""

    made: Sequence[Made]
    checkpoints: Sequence[Checkpoint]
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
        changed = JOBS.update().where(*_mine(claim), allowed).values(beat=JOBS.c.beat + 1, **values)
        if connection.execute(changed).rowcount != 1:
            raise StaleClaimError(claim.job.id)
        add_events(connection, claim.job.id, events=events, owner=claim.job.owner)


def finish(claim: Claim, result: Result, *, trained_tokens: int) -> None:
    """Succeed: models, checkpoints, the result file and the state in one transaction. Raises StaleClaimError, and
    nothing is published, as `write` does."""
    job, now = claim.job, int(time.time())
    name = result.made[0].name
    with transaction() as connection:
        values = {"state": "succeeded", "finished": now, "fine_tuned_model": name, "trained_tokens": trained_tokens}
        changed = JOBS.update().where(*_mine(claim), JOBS.c.state.in_(TRAINING))
        changed = changed.values(holder=None, **values)
        if connection.execute(changed).rowcount != 1:
            raise StaleClaimError(job.id)
        for made in result.made:
            publish(connection, made)
        add_checkpoints(connection, result.checkpoints, owner=job.owner)
        steps = [one.step for one in result.checkpoints]
        events = [Event(f"checkpoint {step}", f"Checkpoint created at step {step}") for step in steps]
        events.append(Event("model", f"New fine-tuned model created: {name}"))
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


def fail(claim: Claim, message: str, *, code: str, param: str | None = None) -> None:
    """End the job with a reason. Raises StaleClaimError as `write` does."""
    values: dict[str, Any] = {"state": "failed", "finished": int(time.time()), "holder": None}
    error = {"code": code, "message": message, "param": param}
    write(claim, events=[Event("failed", f"The job failed: {message}", level="error")], error=error, **values)


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


def _mine(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return JOBS.c.number == claim.job.number, JOBS.c.epoch == claim.epoch, JOBS.c.holder == claim.holder


def _held(claim: Claim, state: str | None) -> str:
    if state is None:
        raise StaleClaimError(claim.job.id)
    return state
