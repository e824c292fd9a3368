"""Whose turn it is: requests wait in a queue for each owner, join the running batch of their base, and leave it.

Not here: the batch itself (running), text (serve.reply), which model a name means (serve.models). One thread per base
does everything that touches its weights; an owner who asks a lot waits behind those who ask little.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tunesmith.errors import ServeError
from tunesmith.running import Prompt, Row, Running, Worn
from tunesmith.serve.reply import Choice, Item, Writer

MAX_ROWS = 32  # in a step; more are hardly faster on a processor
MAX_WAITING = 1024  # requests of all owners
MAX_OWNERS_WAITING = 256  # of one owner
CHUNK = 256  # tokens of prompts in a step, so that those who run do not wait long
ALIVE_S = 5.0  # a token made so recently proves that the base answers

Result = TypeVar("Result")


class Busy(ServeError):
    """The queue is full (429). `retry_after_s` is about how long it takes until there is room."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, f"Ask again in {retry_after_s} s.", status=429, code="rate_limit_exceeded")
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class Job:
    """One request: a prompt, and a writer for each reply that is wanted of it. `put` is called from the base's thread
    with pieces of text, a Choice for each reply, or the exception that ended all of them."""

    ids: Sequence[int]
    writers: Sequence[Writer]
    put: Callable[[Item], None]
    adapter: Worn = None
    owner: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    most: int = 0  # tokens of a reply
    left: int = 0  # replies that are not finished
    asked_s: float = field(default_factory=time.monotonic)


class Scheduler:
    """Runs the jobs of one base on a thread of its own, which starts with the first."""

    def __init__(self, running: Running, *, max_rows: int = MAX_ROWS, max_waiting: int = MAX_WAITING) -> None:
        self.running = running
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.token_made_s: float | None = None  # when the last one was made
        self._lock = threading.Condition()
        self._waiting: dict[str, deque[Job]] = {}  # by owner; the owner served longest ago comes first
        self._calls: deque[Callable[[], None]] = deque()
        self._rows: dict[Row, tuple[Job, Writer]] = {}
        self._prompts: dict[Prompt, Job] = {}  # being fed
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._took_s = 1.0  # a job, lately

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Busy when too many wait, of this owner or of all."""
        job.left = len(job.writers)
        with self._lock:
            of_owner, of_all = self._count_waiting(job.owner)
            if of_owner >= min(MAX_OWNERS_WAITING, self.max_waiting) or of_all >= self.max_waiting:
                raise Busy(f"{of_all} requests wait already.", retry_after_s=self._retry_after_s(of_owner))
            self._waiting.setdefault(job.owner, deque()).append(job)
            self._wake()

    def _count_waiting(self, owner: str) -> tuple[int, int]:
        """Of this owner and of all, without those whose clients have gone."""
        for name, jobs in list(self._waiting.items()):
            self._waiting[name] = deque(job for job in jobs if not job.cancelled.is_set())
        return len(self._waiting.get(owner, ())), sum(map(len, self._waiting.values()))

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Do something with the base between two steps, on its thread."""
        future: Future[Result] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # it belongs to whoever called
                future.set_exception(error)

        with self._lock:
            self._calls.append(do)
            self._wake()
        return future

    def stop(self) -> None:
        """End the thread once nothing runs or waits."""
        with self._lock:
            self._stopped = True
            self._lock.notify()

    @property
    def is_alive(self) -> bool:
        """Whether a token was made just now: no need to try."""
        return self.token_made_s is not None and time.monotonic() - self.token_made_s < ALIVE_S

    @property
    def load(self) -> tuple[int, int]:
        """How many replies are being made, and how many requests wait."""
        with self._lock:
            return len(self._rows), sum(map(len, self._waiting.values()))

    def _retry_after_s(self, of_owner: int) -> int:
        return min(60, max(1, round(self._took_s * of_owner / self.max_rows)))

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tunesmith-decoding", daemon=True)
            self._thread.start()
        self._lock.notify()

    # -- the base's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._rows or self._prompts or self._waiting or self._calls):
                    if self._stopped:
                        self._thread = None  # one who comes too late starts another
                        return
                    self._lock.wait()
                calls, self._calls = self._calls, deque()
            for call in calls:
                call()
            try:
                self._drop_cancelled()
                feeds = self._feeds()
                if self._rows or feeds:
                    stepped = list(self._rows)
                    self.running.step(feeds)
                    self._write(stepped)
                    for prompt, _ in feeds:
                        self._open(prompt)
            except BaseException as error:  # it belongs to all who are in the batch; nobody else would be told
                self._fail(error)

    def _feeds(self) -> list[tuple[Prompt, int]]:
        """Prompts to be fed in the next step, and how many tokens of each: first those that were begun."""
        feeds, budget = [], CHUNK
        begun = iter(list(self._prompts))
        while budget > 0 and (prompt := next(begun, None) or self._begin_next()):
            if prompt.is_ready:
                self._open(prompt)
            else:
                feeds.append((prompt, min(budget, prompt.left)))
                budget -= feeds[-1][1]
        return feeds

    def _begin_next(self) -> Prompt | None:
        """Begin the prompt of the next job; None when nobody has a turn."""
        while (job := self._next()) is not None:
            try:
                prompt = self.running.begin(job.ids, adapter=job.adapter, owner=job.owner)
            except BaseException as error:  # it belongs to whoever asked
                job.put(_told(error))
            else:
                self._prompts[prompt] = job
                return prompt
        return None

    def _next(self) -> Job | None:
        """The job of an owner with the fewest rows, whoever waits longest among these; None while it has no room."""
        with self._lock:
            for owner in list(self._waiting):
                while self._waiting[owner] and self._waiting[owner][0].cancelled.is_set():
                    self._waiting[owner].popleft()
                if not self._waiting[owner]:
                    del self._waiting[owner]
            if not self._waiting:
                return None
            active = [job for job, _ in self._rows.values()]
            active += [job for job in self._prompts.values() for _ in job.writers]
            rows = Counter(job.owner for job in active)
            owner = min(self._waiting, key=lambda name: rows[name])
            job = self._waiting[owner][0]
            num_rows = len(job.writers)
            if active and len(active) + num_rows > self.max_rows:
                return None
            most = max(len(job.ids) + job.most for job in (*active, job))
            if active and not self.running.fits(len(active) + num_rows, most):
                return None
            queue = self._waiting.pop(owner)
            queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind all other owners
            return job

    def _open(self, prompt: Prompt) -> None:
        """Let rows go on from a prompt, if it is ready; those that have a token already write it."""
        if prompt.failure is not None:
            self._prompts.pop(prompt).put(prompt.failure)
        elif prompt.is_ready:
            job = self._prompts[prompt]  # until it has rows: what fails before belongs to it
            rows = self.running.join(prompt, [writer.drawing for writer in job.writers])
            del self._prompts[prompt]
            self._rows |= {row: (job, writer) for row, writer in zip(rows, job.writers, strict=True)}
            if not prompt.left:
                self._write(rows)

    def _fail(self, error: BaseException) -> None:
        jobs = {id(job): job for job in (*(job for job, _ in self._rows.values()), *self._prompts.values())}
        self._rows.clear()
        self._prompts.clear()
        self.running.clear()
        for job in jobs.values():
            job.put(_told(error))

    def _write(self, rows: Sequence[Row]) -> None:
        """Hand each row's new token to its writer; those that are finished leave."""
        self.token_made_s = time.monotonic()
        for row in rows:
            job, writer = self._rows[row]
            try:
                if row.failure is not None:
                    raise row.failure
                for item in writer.push(row.token):
                    job.put(item)
                    if isinstance(item, Choice):
                        self._leave(row)
                        job.left -= 1
                        if not job.left:
                            self._took_s += 0.1 * (time.monotonic() - job.asked_s - self._took_s)
            except BaseException as error:  # of the writer: it belongs to whoever asked
                job.cancelled.set()
                job.put(_told(error))

    def _drop_cancelled(self) -> None:
        self._prompts = {prompt: job for prompt, job in self._prompts.items() if not job.cancelled.is_set()}
        for row in [row for row, (job, _) in self._rows.items() if job.cancelled.is_set()]:
            self._leave(row)

    def _leave(self, row: Row) -> None:
        if self._rows.pop(row, None) is not None:
            self.running.leave(row)


def _told(error: BaseException) -> Exception:
    """As it is told to whoever asked: a panic of a library in Rust must not end their thread as well."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


def wait_for(future: Future[Any], timeout_s: float) -> Any:
    """The result of a call to a base's thread. Raises ServeError (503) when it does not come."""
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        raise ServeError("The model does not answer.", "Look at the server's log.", status=503) from error
