"""The queue: claims, fences, leases and events, on SQLite and on a PostgreSQL server that the test starts."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlalchemy import func, select

from tests.postgres import postgres_url as postgres_url
from tests.serve.house import at_once
from tunesmith.database import transaction
from tunesmith.errors import DatabaseError
from tunesmith.serve.records import jobs, outbox, queue
from tunesmith.serve.records.events import EVENTS, Event, list_events
from tunesmith.serve.records.jobs import ENDED, JOBS, JobOrder, WrongStateError, create_job, find_job
from tunesmith.serve.records.models import MODELS, Made
from tunesmith.serve.records.queue import Claim, Leases, Result, StaleClaimError

OWNERS = ("ann", "ben", "cleo")
WORKABLE = ("queued", "running", "pausing")


def order(**values: Any) -> JobOrder:
    known = {"model": "tiny", "training_file": "file-1", "validation_file": None, "method": "supervised", "asked": {}}
    known |= {"seed": 1, "suffix": None, "labels": None, "integrations": None, "request_sha256": "body"}
    return JobOrder(**known | values)


def queued(owner: str, **values: Any) -> str:
    """A job that was looked at; its id."""
    job = create_job(order(**values), owner=owner)
    with transaction() as connection:
        row = JOBS.update().where(JOBS.c.id == job.id).values(state="queued", resolved={})
        connection.execute(row)
    return job.id


def take(holder: str = "me") -> Claim:
    claim = queue.claim(holder, states=WORKABLE)
    assert claim
    return claim


def result_of(claim: Claim) -> Result:
    made = Made(f"ft:{claim.job.id}", claim.job.owner, 1, "tiny", Path("x"), "sha", job=claim.job.id)
    return Result(made, b"step\n")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database of each kind."""
    if request.param == "postgresql":
        monkeypatch.setenv("TUNESMITH_DATABASE", request.getfixturevalue("postgres_url"))
    empty()
    return str(request.param)


def empty() -> None:
    with transaction() as connection:
        for table in (JOBS, EVENTS, MODELS, jobs.LABELS):
            connection.execute(table.delete())


def test_the_oldest_of_the_highest_priority_is_next(database: str) -> None:
    ids = [queued("ann"), queued("ann", priority=1), queued("ann")]
    assert [take().job.id for _ in ids] == [ids[1], ids[0], ids[2]]
    assert queue.claim("me", states=WORKABLE) is None


def test_owners_take_turns(database: str) -> None:
    for owner in ("ann", "ann", "ann", "ann", "ben", "cleo", "cleo"):
        queued(owner)
    owners = []
    for _ in range(7):
        claim = take()
        queue.write(claim, state="running")
        owners.append(claim.job.owner)
    assert owners == ["ann", "ben", "cleo", "ann", "cleo", "ann", "ann"]


def test_what_an_earlier_holder_writes_is_refused(database: str) -> None:
    queued("ann")
    old = take("old")
    queue.write(old, state="running")
    assert queue.release_all() == 1
    new = take("new")
    assert new.epoch == old.epoch + 1 and new.job.id == old.job.id
    for stale in (
        lambda: queue.look(old),
        lambda: queue.beat(old),
        lambda: queue.write(old, events=[Event("x", "x")]),
        lambda: queue.fail(old, "no", code="no"),
        lambda: queue.finish(old, result_of(old), trained_tokens=1),
    ):
        with pytest.raises(StaleClaimError):
            stale()
    queue.release(old)
    assert queue.look(new) == "running"
    queue.finish(new, result_of(new), trained_tokens=1)
    job = find_job(new.job.id, owner="ann")
    assert job and job.state == "succeeded" and job.holder is None and job.result_files


def test_a_quota_holds_against_creations_side_by_side(database: str) -> None:
    codes: list[int] = []

    def admit(active: int) -> None:
        if active >= 3:
            raise KeyError

    def create() -> None:
        try:
            create_job(order(), owner="quota", admit=admit)
            codes.append(200)
        except KeyError:
            codes.append(429)

    at_once(create, times=12)
    assert sorted(codes) == [200] * 3 + [429] * 9


def test_a_cancelled_job_is_not_published(database: str) -> None:
    queued("ann")
    claim = take()
    queue.write(claim, state="running")
    jobs.cancel_job(claim.job.id, owner="ann")
    assert queue.look(claim) == "cancelled"
    with pytest.raises(StaleClaimError):
        queue.finish(claim, result_of(claim), trained_tokens=1)
    with transaction() as connection:
        assert not connection.execute(select(func.count()).select_from(MODELS)).scalar()


def test_every_end_is_told_once_and_nothing_that_was_refused(database: str) -> None:
    outbox.listen(["https://hooks.example/"])
    ids = [queued("ann") for _ in range(3)]
    claims = [take(str(number)) for number in range(3)]
    for claim in claims[:2]:
        queue.write(claim, state="running")
    queue.finish(claims[0], result_of(claims[0]), trained_tokens=1)
    queue.fail(claims[1], "no", code="no")
    jobs.cancel_job(ids[2], owner="ann")
    for claim in claims:
        with pytest.raises(StaleClaimError):
            queue.fail(claim, "no", code="no")
    with transaction() as connection:
        told = connection.execute(select(outbox.OUTBOX.c.kind, outbox.OUTBOX.c.about)).all()
    states = ("succeeded", "failed", "cancelled")
    assert sorted(told) == sorted((f"fine_tuning.job.{state}", id) for state, id in zip(states, ids, strict=True))
    outbox.listen([])


def test_a_lease_ends_when_its_beat_stands_still_on_the_watchers_own_clock(database: str) -> None:
    queued("ann")
    queued("ben")
    clock = [0.0]
    leases = Leases(["watcher"], lease_s=10, clock=lambda: clock[0])
    alive, frozen = take("alive"), take("frozen")
    for clock[0] in (0.0, 6.0, 9.9):
        queue.beat(alive)
        assert leases.free_expired() == 0
    clock[0] = 10.0
    queue.beat(alive)
    assert leases.free_expired() == 1
    assert queue.look(alive)
    with pytest.raises(StaleClaimError):
        queue.beat(frozen)
    assert take("watcher").job.id == frozen.job.id


def test_an_event_is_told_once(database: str) -> None:
    queued("ann")
    claim = take()
    for text in ("first", "again"):
        queue.write(claim, events=[Event("step 1", text, data={"step": 1}), Event("step 1", text)])
    told = list_events(claim.job.id, owner="ann", limit=10)
    assert told and [event.message for event in told if event.message in ("first", "again")] == ["first"]
    assert list_events(claim.job.id, owner="ben", limit=10) == []


# -- many at once ------------------------------------------------------------------------------------------------


def queue_many(count: int) -> list[str]:
    """So many jobs of three owners, in one transaction."""
    queued("ann")
    with transaction() as connection:
        first = dict(connection.execute(JOBS.select()).mappings().one())
        del first["number"]
        rows = [{**first, "id": f"ftjob-{number}", "owner": OWNERS[number % 3]} for number in range(1, count)]
        connection.execute(JOBS.insert(), rows)
        return list(connection.execute(select(JOBS.c.id)).scalars())


def claim_all(name: str, home: str, database: str | None, out: Any) -> None:
    """Claim until there is nothing left; every tenth job is begun, and every other one of those ended."""
    os.environ["TUNESMITH_HOME"] = home
    if database:
        os.environ["TUNESMITH_DATABASE"] = database
    mine = []
    while claim := patiently(lambda: queue.claim(name, states=("queued",))):
        mine.append((claim.job.id, claim.epoch))
        if len(mine) % 10 == 0:
            patiently(partial(queue.write, claim, state="running"))
        if len(mine) % 20 == 0:
            patiently(partial(queue.fail, claim, "enough", code="enough"))
    out.put(mine)


def patiently(act: Callable[[], Any]) -> Any:
    """SQLite serves those who wait in no order: one of sixteen may wait for longer than a transaction does."""
    while True:
        try:
            return act()
        except DatabaseError as error:
            assert "locked" in str(error)


def claim_by_processes(home: Path, *, processes: int, count: int) -> None:
    ids = queue_many(count)
    spawn = multiprocessing.get_context("spawn")
    out: Any = spawn.Queue()
    url = os.environ.get("TUNESMITH_DATABASE")
    workers = [spawn.Process(target=claim_all, args=(f"p{n}", str(home), url, out)) for n in range(processes)]
    for worker in workers:
        worker.start()
    claims: list[tuple[str, int]] = []
    for _ in workers:
        claims += out.get(timeout=300)
    for worker in workers:
        worker.join()
    assert Counter(job for job, _ in claims) == Counter(ids)
    assert {epoch for _, epoch in claims} == {1}


def test_four_threads_claim_a_hundred_jobs_once_each(database: str) -> None:
    ids = queue_many(100)
    taken: list[str] = []

    def work(name: str) -> None:
        while claim := queue.claim(name, states=("queued",)):
            taken.append(claim.job.id)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(taken) == Counter(ids)


@pytest.mark.slow
def test_sixteen_processes_claim_two_thousand_jobs_once_each(database: str, tunesmith_home: Path) -> None:
    claim_by_processes(tunesmith_home, processes=16, count=2000)


# -- any order of events -----------------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """Owners, holders, crashes and lost leases in any order, against a model of who holds what in which state."""

    claims: Bundle[Claim] = Bundle("claims")

    @initialize()
    def start(self) -> None:
        empty()
        self.states: dict[str, str] = {}
        self.owners: dict[str, str] = {}
        self.holding: dict[str, Claim] = {}  # the claim that counts
        self.epochs: Counter[str] = Counter()
        self.steps: dict[str, set[int]] = {}
        self.now = 0.0
        self.leases = Leases(["watcher"], lease_s=10, clock=lambda: self.now)

    @rule(owner=st.sampled_from(OWNERS), priority=st.integers(0, 2))
    def create(self, owner: str, priority: int) -> None:
        job_id = queued(owner, priority=priority)
        self.states[job_id], self.owners[job_id], self.steps[job_id] = "queued", owner, set()

    @rule(target=claims, holder=st.sampled_from(["a", "b"]))
    def claim(self, holder: str) -> Any:
        free = {job for job, state in self.states.items() if state in WORKABLE and job not in self.holding}
        claim = queue.claim(holder, states=WORKABLE)
        assert (claim is not None) == bool(free)
        if claim is None:
            return None
        self.epochs[claim.job.id] += 1
        assert claim.job.id in free and claim.epoch == self.epochs[claim.job.id]
        self.holding[claim.job.id] = claim
        return claim

    def counts(self, claim: Claim) -> bool:
        return self.holding.get(claim.job.id) is claim

    @rule(claim=claims, step=st.integers(1, 5))
    def step(self, claim: Claim | None, step: int) -> None:
        if claim is None:
            return
        job = claim.job.id
        events = [Event(f"step {step}", f"Step {step}", data={"step": step})]
        if self.counts(claim) and self.states[job] in ("queued", "running"):
            queue.write(claim, events=events, only_in=("queued", "running"), state="running")
            self.states[job] = "running"
            self.steps[job].add(step)
        else:
            with pytest.raises(StaleClaimError):
                queue.write(claim, events=events, only_in=("queued", "running"), state="running")

    @rule(claim=claims)
    def beat(self, claim: Claim | None) -> None:
        if claim is None:
            return
        if self.counts(claim):
            assert queue.beat(claim) == self.states[claim.job.id]
        else:
            with pytest.raises(StaleClaimError):
                queue.beat(claim)

    @rule(claim=consumes(claims), good=st.booleans())
    def end(self, claim: Claim | None, good: bool) -> None:
        if claim is None:
            return
        job = claim.job.id
        allowed = ("running", "pausing") if good else tuple(set(jobs.STATES) - set(ENDED))
        counted = self.counts(claim) and self.states[job] in allowed

        def end() -> None:
            if good:
                queue.finish(claim, result_of(claim), trained_tokens=1)
            else:
                queue.fail(claim, "no", code="no")

        if counted:
            end()
            self.states[job] = "succeeded" if good else "failed"
            del self.holding[job]
        else:
            with pytest.raises(StaleClaimError):
                end()

    @rule(claim=claims)
    def release(self, claim: Claim | None) -> None:
        if claim is None:
            return
        queue.release(claim)
        if self.counts(claim):
            del self.holding[claim.job.id]

    @rule(data=st.data(), what=st.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, data: st.DataObject, what: str) -> None:
        if not self.states:
            return
        job = data.draw(st.sampled_from(sorted(self.states)))
        move = {"cancel": jobs.cancel_job, "pause": jobs.pause_job, "resume": jobs.resume_job}[what]
        state = self.states[job]
        to = {
            "cancel": None if state in ENDED else "cancelled",
            "pause": {"queued": "paused", "running": "pausing"}.get(state),
            "resume": {"paused": "queued"}.get(state),
        }[what]
        assert move(job, owner="stranger") is None
        if to is None:
            with pytest.raises(WrongStateError):
                move(job, owner=self.owners[job])
        else:
            moved = move(job, owner=self.owners[job])
            assert moved and moved.state == to
            self.states[job] = to

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        """Time passes for a watcher; who did not beat since it looked last, for ten seconds, is gone."""
        self.now += seconds
        self.leases.free_expired()
        with transaction() as connection:
            held = set(connection.execute(select(JOBS.c.id).where(JOBS.c.holder.is_not(None))).scalars())
        assert held <= self.holding.keys()
        self.holding = {job: claim for job, claim in self.holding.items() if job in held}

    @rule()
    def restart(self) -> None:
        assert queue.release_all() == len(self.holding)
        self.holding = {}

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        with transaction() as connection:
            rows = connection.execute(select(JOBS.c.id, JOBS.c.state, JOBS.c.holder, JOBS.c.epoch)).all()
            keyed = select(EVENTS.c.job, EVENTS.c.message).where(EVENTS.c.type == "metrics")
            steps = Counter((job, text) for job, text in connection.execute(keyed))
            names = list(connection.execute(select(MODELS.c.name)).scalars())
        assert {row.id: row.state for row in rows} == self.states
        assert {row.id: row.holder for row in rows if row.holder} == {
            job: claim.holder for job, claim in self.holding.items()
        }
        assert all(row.epoch == self.epochs[row.id] for row in rows)
        assert steps == Counter((job, f"Step {step}") for job, done in self.steps.items() for step in done)
        assert sorted(names) == sorted(f"ft:{job}" for job, state in self.states.items() if state == "succeeded")


def run_machine(examples: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    few = settings(
        max_examples=examples, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(QueueMachine, settings=few)


def test_any_order_of_events_keeps_the_queue_whole(tunesmith_home: Path) -> None:
    run_machine(6)


@pytest.mark.slow
def test_any_order_of_events_keeps_the_queue_whole_for_long(database: str) -> None:
    run_machine(150)
