"""Whose turn it is at an engine outside this process: so many replies at a time, owners by turns, the rest wait.

Not here: asking the engine (llamacpp, url), the batch of the torch engine (serve.scheduler). A thread for each reply
under way, which does little but wait for its next token.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from tunesmith.errors import ServeError
from tunesmith.sampling import Token
from tunesmith.serve.reply import Choice, Item, Writer
from tunesmith.serve.scheduler import ALIVE_S, MAX_OWNERS_WAITING, MAX_WAITING, Busy, Job
from tunesmith.serve.wire.errors import RequestError

# Pieces of one reply and its Choice, and None for a token that brings no text yet; closed when nobody wants more.
Items = Generator[Item | None, None, None]
Answer = Callable[[Job, Writer], Items]
Turn = tuple[Job, Writer]


class Lanes:
    """`answer` is called for each reply that is wanted, from at most `num_lanes` threads at once. `room` is how many
    tokens, of prompts and replies, may be under way together."""

    def __init__(self, answer: Answer, *, num_lanes: int, room: int | None = None) -> None:
        self.answer = answer
        self.num_lanes = num_lanes
        self.room = room
        self.max_waiting = MAX_WAITING
        self.token_made_s: float | None = None
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[Turn]] = OrderedDict()  # the owner served longest ago comes first
        self._running: Counter[str] = Counter()  # by owner
        self._used = 0  # of `room`
        self._took_s = 1.0  # a reply, lately

    def submit(self, job: Job) -> None:
        """Raises Busy when too many replies wait, of this owner or of all."""
        job.left = len(job.writers)
        with self._lock:
            for owner, turns in list(self._waiting.items()):
                self._waiting[owner] = deque(turn for turn in turns if not turn[0].cancelled.is_set())
            of_owner, of_all = len(self._waiting.get(job.owner, ())), sum(map(len, self._waiting.values()))
            if of_owner >= min(MAX_OWNERS_WAITING, self.max_waiting) or of_all >= self.max_waiting:
                wait_s = min(60, max(1, round(self._took_s * of_owner / self.num_lanes)))
                raise Busy(f"{of_all} requests wait already.", retry_after_s=wait_s)
            self._waiting.setdefault(job.owner, deque()).extend((job, writer) for writer in job.writers)
            self._start()

    @property
    def load(self) -> tuple[int, int]:
        """How many replies are being made, and how many wait."""
        with self._lock:
            return self._running.total(), sum(map(len, self._waiting.values()))

    @property
    def is_alive(self) -> bool:
        return self.token_made_s is not None and time.monotonic() - self.token_made_s < ALIVE_S

    def _start(self) -> None:
        """As many as have room. The lock is held."""
        while (turn := self._next()) is not None:
            job, writer = turn
            self._running[job.owner] += 1
            self._used += _size(job)
            thread = threading.Thread(target=self._run, args=(job, writer), name="tunesmith-lane", daemon=True)
            thread.start()

    def _next(self) -> Turn | None:
        """Of an owner with the fewest replies under way, whoever was served longest ago."""
        waiting = {owner: turns for owner, turns in self._waiting.items() if turns}
        if not waiting or self._running.total() >= self.num_lanes:
            return None
        owner = min(waiting, key=lambda name: self._running[name])
        job = waiting[owner][0][0]
        if self.room is not None and self._used and self._used + _size(job) > self.room:
            return None
        turn = waiting[owner].popleft()
        turns = self._waiting.pop(owner)
        if turns:
            self._waiting[owner] = turns  # behind all other owners
        return turn

    def _run(self, job: Job, writer: Writer) -> None:
        start = time.monotonic()
        try:
            if not job.cancelled.is_set():
                self._hand_on(job, writer)
        finally:
            with self._lock:
                self._took_s += 0.1 * (time.monotonic() - start - self._took_s)
                self._running[job.owner] -= 1
                self._used -= _size(job)
                self._start()

    def _hand_on(self, job: Job, writer: Writer) -> None:
        try:
            with closing(self.answer(job, writer)) as items:
                for item in items:
                    if job.cancelled.is_set():
                        return
                    self.token_made_s = time.monotonic()
                    if item is not None:
                        job.put(item)
                    if isinstance(item, Choice):
                        return
            raise ServeError("The engine ended its reply without an end.", "Ask again.", status=503)
        except Exception as error:  # it belongs to whoever asked
            if not job.cancelled.is_set():
                job.cancelled.set()  # its other replies end, too
                job.put(error)


class LanedEngine:
    """What the engines outside this process have in common: replies go through `lanes`."""

    lanes: Lanes
    name: str

    @property
    def is_alive(self) -> bool:
        return self.lanes.is_alive

    @property
    def load(self) -> tuple[int, int]:
        return self.lanes.load

    def submit(self, job: Job) -> None:
        self.lanes.submit(job)

    def tell(self, ids: Sequence[int], adapter: object, *, top: int) -> list[Token]:
        raise RequestError(
            f"'echo' with 'logprobs' is beyond the engine {self.name} of this model; leave one of them out, or serve "
            "it with --engine torch.",
            param="echo",
            code="unsupported_parameter",
        )


def written(tokens: Generator[Token, None, None], writer: Writer) -> Items:
    """What a reply's tokens bring, up to its Choice."""
    with closing(tokens):
        for token in tokens:
            items = writer.push(token)
            yield from items
            if not items:
                yield None
            elif isinstance(items[-1], Choice):
                return


def _size(job: Job) -> int:
    return len(job.ids) + job.most
