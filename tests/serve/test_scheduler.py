"""Whose turn it is: owners share, the queue ends, those who go are dropped, a failure reaches those it belongs to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Message
from tunesmith.generate import decode
from tunesmith.model import Base, load_base
from tunesmith.render import Renderer
from tunesmith.running import Running
from tunesmith.sampling import Sampling, Token
from tunesmith.serve.reply import Ask, Choice, GrowingText, Item, Piece, Writer
from tunesmith.serve.scheduler import Busy, Job, Scheduler


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base), precision="float32")


@pytest.fixture
def scheduler(tiny_base: Path) -> Iterator[Scheduler]:
    """On a base of its own: one thread only may decode with a base."""
    scheduler = Scheduler(Running(load_base(str(tiny_base), precision="float32"), check=False), max_rows=4)
    yield scheduler
    scheduler.stop()


@pytest.fixture(scope="module")
def own_scheduler(tiny_base: Path) -> Iterator[Scheduler]:
    scheduler = Scheduler(Running(load_base(str(tiny_base), precision="float32"), check=False), max_rows=4)
    yield scheduler
    scheduler.stop()


class Asked:
    """A job whose items are kept."""

    def __init__(self, base: Base, text: str = "Hi", *, owner: str = "a", tokens: int = 6, n: int = 1) -> None:
        self.items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        ask = Ask((Message("user", text),), sampling=Sampling(logit_bias=((2, -100.0),)), n=n)  # never ends by itself
        ids = base.renderer.prompt(ask.messages)
        writers = [Writer(base, ask, index=index, prompt_tokens=len(ids), limit=tokens) for index in range(n)]
        self.job = Job(ids, writers, self.items.put, owner=owner, most=tokens)

    def end(self) -> Choice:
        while not isinstance(item := self.items.get(timeout=20), Choice):
            if isinstance(item, Exception):
                raise item
        return item


def test_an_owner_who_asks_little_does_not_wait_behind_one_who_asks_a_lot(base: Base, scheduler: Scheduler) -> None:
    many = [Asked(base, f"number {number}", owner="many", tokens=12) for number in range(12)]
    few = Asked(base, "one", owner="few", tokens=12)
    order: list[str] = []
    for asked in (*many, few):
        asked.job.put = lambda item, owner=asked.job.owner: order.append(owner) if isinstance(item, Choice) else None  # type: ignore[misc]
    hold = threading.Event()
    scheduler.call(lambda: hold.wait(20))  # all are there before the first begins
    for asked in (*many, few):
        scheduler.submit(asked.job)
    hold.set()
    last = Asked(base, owner="last", tokens=40)
    scheduler.submit(last.job)
    last.end()
    while len(order) < 13:
        scheduler.call(lambda: None).result(20)
    assert order.index("few") < 5


def test_a_full_queue_says_when_to_come_back_and_keeps_room_for_others(base: Base, scheduler: Scheduler) -> None:
    scheduler.max_waiting = 3
    hold = threading.Event()
    scheduler.call(lambda: hold.wait(20))
    accepted = [Asked(base, owner=owner) for owner in ("a", "a", "b")]
    for asked in accepted:
        scheduler.submit(asked.job)
    with pytest.raises(Busy) as caught:
        scheduler.submit(Asked(base, owner="c").job)
    assert caught.value.status == 429 and 1 <= caught.value.retry_after_s <= 60
    hold.set()
    assert all(asked.end().reply.completion_tokens == 6 for asked in accepted)
    scheduler.submit(Asked(base, owner="c").job)


def test_one_who_goes_away_leaves_the_batch_and_the_queue(base: Base, scheduler: Scheduler) -> None:
    gone, stays, never = Asked(base, tokens=400), Asked(base, tokens=30), Asked(base, tokens=400)
    never.job.cancelled.set()
    for asked in (gone, stays, never):
        scheduler.submit(asked.job)
    assert isinstance(gone.items.get(timeout=20), Piece)
    gone.job.cancelled.set()
    assert stays.end().reply.completion_tokens == 30
    scheduler.call(lambda: None).result(20)
    scheduler.call(lambda: None).result(20)
    assert scheduler.load == (0, 0) and not scheduler.running.rows
    assert never.items.empty()


@pytest.mark.parametrize("where", ["begin", "step", "join"])
def test_a_failure_ends_those_in_it_and_the_next_is_answered(
    base: Base, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*args: Any, **keywords: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(scheduler.running, where, fail)
        asked = [Asked(base), Asked(base, n=2)]
        for one in asked:
            scheduler.submit(one.job)
        for one in asked:
            with pytest.raises(RuntimeError, match="no memory"):
                one.end()
    again = Asked(base)
    scheduler.submit(again.job)
    assert again.end().reply.completion_tokens == 6


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.sampled_from("abc")), min_size=1, max_size=6))
def test_every_request_is_answered_once_with_its_own_text(
    base: Base, own_scheduler: Scheduler, asked: list[tuple[int, int, str]]
) -> None:
    jobs = [Asked(base, f"case {tokens}", owner=owner, tokens=tokens, n=n) for tokens, n, owner in asked]
    for job in jobs:
        own_scheduler.submit(job.job)
    for job, (tokens, n, _) in zip(jobs, asked, strict=True):
        choices = [job.end() for _ in range(n)]
        (alone,) = decode(base.model, [job.job.ids], stop_ids=frozenset(), max_new_tokens=tokens)
        text = base.renderer.decode(alone.ids)
        if 2 not in alone.ids:  # whose bias changes the choice
            assert [choice.reply.text for choice in choices] == [text] * n
        assert sorted(choice.index for choice in choices) == list(range(n))
        assert all(choice.reply.completion_tokens == tokens for choice in choices)
        assert job.items.empty()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 258), st.sampled_from([168, 177, 130, 161])), max_size=40))
def test_growing_text_is_all_ids_decoded_together(base: Base, ids: list[int]) -> None:
    text = GrowingText(base.renderer)
    for token in ids:
        before = text.whole
        assert text.add(token) == (text.whole != before)
        assert text.whole.startswith(before)
    text.finish()
    assert text.whole == base.renderer.decode(ids)


def test_pieces_of_a_writer_add_up_and_bring_their_tokens(base: Base) -> None:
    renderer: Renderer = base.renderer
    ids = renderer.tokenizer.backend_tokenizer.encode("It costs 5 € today.", add_special_tokens=False).ids
    ask = Ask(sampling=Sampling(top_logprobs=0), stop=("today",))
    writer = Writer(base, ask, index=1, prompt_tokens=3, limit=100)
    items: list[Piece | Choice] = []
    for token in ids:
        items += writer.push(Token(token, -1.0))
        if isinstance(items[-1:], Choice):
            break
        if any(isinstance(item, Choice) for item in items):
            break
    *pieces, choice = items
    assert isinstance(choice, Choice) and choice.reply.finish_reason == "stop"
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == choice.reply.text == "It costs 5 € "
    told = [token.id for piece in pieces if isinstance(piece, Piece) for token in piece.tokens]
    assert told == [token.id for token in choice.tokens] == ids[: len("It costs 5 € ".encode())]


class NoWayOn:
    """A grammar that fails at its third token."""

    def __init__(self) -> None:
        self.accepted = 0

    def allowed(self) -> bytes:
        if self.accepted == 2:
            raise ValueError("no token is allowed")
        return b"\xff" * 40

    def accept(self, token: int) -> None:
        self.accepted += 1


def test_a_grammar_that_fails_ends_its_own_reply_only(base: Base, scheduler: Scheduler) -> None:
    fails, goes_on = Asked(base, tokens=12), Asked(base, tokens=12)
    fails.job.writers[0].drawing.constraint = NoWayOn()
    for asked in (fails, goes_on):
        scheduler.submit(asked.job)
    with pytest.raises(ValueError, match="no token is allowed"):
        fails.end()
    assert goes_on.end().reply.completion_tokens == 12
    for _ in range(2):
        scheduler.call(lambda: None).result(20)
    assert scheduler.load == (0, 0)
