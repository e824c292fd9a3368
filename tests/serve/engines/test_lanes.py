"""Lanes: every reply that is wanted comes once, never more at once than there are lanes, room and fair turns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.contender import Reply
from tunesmith.model import Base, load_base
from tunesmith.serve.engines.lanes import Items, Lanes
from tunesmith.serve.reply import Ask, Choice, Item, Writer
from tunesmith.serve.scheduler import Busy, Job

LANES = 3
ROOM = 40


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base), precision="float32")


class Watched:
    """An engine that notes what is under way, and waits until `go` is set."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: Counter[str] = Counter()
        self.tokens = self.most = self.most_tokens = 0
        self.order: list[str] = []
        self.go = threading.Event()

    def answer(self, job: Job, writer: Writer) -> Items:
        with self.lock:
            self.now[job.owner] += 1
            self.tokens += len(job.ids) + job.most
            self.most = max(self.most, self.now.total())
            self.most_tokens = max(self.most_tokens, self.tokens)
            self.order.append(job.owner)
        self.go.wait(10)
        with self.lock:
            self.now[job.owner] -= 1
            self.tokens -= len(job.ids) + job.most
        yield None
        yield Choice(writer.index, Reply("", len(job.ids), 1, 0.0, "stop"))


def job(base: Base, owner: str, *, n: int = 1, size: int = 4, put: Callable[[Item], None]) -> Job:
    writers = [Writer(base, Ask(n=n), index=index, prompt_tokens=size, limit=4) for index in range(n)]
    return Job([1] * size, writers, put, None, owner, most=4)


@given(asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 12)), max_size=12))
@settings(max_examples=25, deadline=None)
def test_every_reply_comes_once_within_lanes_and_room(base: Base, asked: list[tuple[str, int, int]]) -> None:
    engine, done = Watched(), threading.Semaphore(0)
    engine.go.set()
    lanes = Lanes(engine.answer, num_lanes=LANES, room=ROOM)
    arrived: list[list[Item]] = [[] for _ in asked]
    for (owner, n, size), items in zip(asked, arrived, strict=True):

        def put(item: Item, items: list[Item] = items) -> None:
            items.append(item)
            done.release()

        lanes.submit(job(base, owner, n=n, size=size, put=put))
    for _ in range(sum(n for _, n, _ in asked)):
        assert done.acquire(timeout=10)
    for (_, n, _), items in zip(asked, arrived, strict=True):
        assert sorted(item.index for item in items if isinstance(item, Choice)) == list(range(n))
        assert len(items) == n
    assert engine.most <= LANES
    assert engine.most_tokens <= ROOM


def test_an_owner_who_asks_little_does_not_wait_behind_one_who_asks_a_lot(base: Base) -> None:
    engine, done = Watched(), threading.Semaphore(0)
    lanes = Lanes(engine.answer, num_lanes=1)
    for owner in "aaaaab":
        lanes.submit(job(base, owner, put=lambda item: done.release()))
    engine.go.set()
    for _ in range(6):
        assert done.acquire(timeout=10)
    assert engine.order.index("b") <= 2


def test_too_many_waiting_is_busy_and_those_who_left_do_not_count(base: Base) -> None:
    engine = Watched()
    lanes = Lanes(engine.answer, num_lanes=1)
    lanes.max_waiting = 2
    jobs = [job(base, "a", put=lambda item: None) for _ in range(4)]
    for each in jobs[:3]:
        lanes.submit(each)
    with pytest.raises(Busy) as busy:
        lanes.submit(jobs[3])
    assert busy.value.retry_after_s >= 1
    jobs[2].cancelled.set()
    lanes.submit(jobs[3])
    assert lanes.load == (1, 2)
    engine.go.set()


def test_an_error_ends_all_replies_of_its_request_and_no_others(base: Base) -> None:
    arrived: list[Item] = []
    ended = threading.Event()

    def fail(job: Job, writer: Writer) -> Items:
        yield None
        raise ConnectionError("gone")

    def put(item: Item) -> None:
        arrived.append(item)
        ended.set()

    lanes = Lanes(fail, num_lanes=4)
    lanes.submit(job(base, "a", n=3, put=put))
    assert ended.wait(10)
    while lanes.load != (0, 0):
        ended.wait(0.01)
    assert [type(item) for item in arrived] == [ConnectionError]
