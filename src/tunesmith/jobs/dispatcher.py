"""The dispatcher: threads of the server that take jobs from the queue and see each to its end.

Not here: the single steps (validation, process, watch, parity, publishing), the queue's rules (serve.records.queue).
Called by cli.server. Whatever kills this process, its workers or both, the next dispatcher goes on from the database
and the run directories, which are the truth.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tunesmith.errors import TunesmithError
from tunesmith.jobs.parity import Parity
from tunesmith.jobs.process import train_command
from tunesmith.jobs.training import Stopped, Training
from tunesmith.jobs.validation import InvalidJobError, TrainableBase, validate
from tunesmith.serve.records import queue
from tunesmith.serve.records.events import Event
from tunesmith.serve.records.queue import Claim, Leases, StaleClaimError

LOG = logging.getLogger("tunesmith.jobs")
POLL_S = 0.5
BEATS_A_LEASE = 6


@dataclass(frozen=True, slots=True)
class Setup:
    """How jobs are worked on. `command` makes a worker's command line from its job's folder; a job whose workers ended
    `max_crashes` times without saying why has failed."""

    bases: Mapping[str, TrainableBase]
    parity: Parity
    workers: int = 1
    poll_s: float = POLL_S
    lease_s: float = queue.LEASE_S
    max_crashes: int = 3
    command: Callable[..., Sequence[str]] = train_command


@dataclass(slots=True)
class Dispatcher:
    """Start it once; `stop` has the workers save and end, and lets go of their jobs."""

    setup: Setup
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}")
    _stopping: threading.Event = field(default_factory=threading.Event)
    _claims: dict[str, Claim] = field(default_factory=dict)  # by thread
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        is_shared = queue.is_shared()
        if not is_shared:  # the home folder is locked: whoever held a job before is gone
            queue.release_all()
        hands: dict[str, Callable[[], None]] = {}
        hands["validator"] = partial(self._work, ("validating_files",), self._validate)
        for number in range(self.setup.workers):
            hands[f"trainer-{number}"] = partial(self._work, ("queued", "running", "pausing"), self._train)
        if is_shared:
            hands["leases"] = self._keep_leases
        for name, target in hands.items():
            thread = threading.Thread(target=target, name=f"tunesmith-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _work(self, states: Sequence[str], handle: Callable[[Claim], None]) -> None:
        """One thread's life: the next job, again and again. What goes wrong with one job does not end it."""
        name = threading.current_thread().name
        while not self._stopping.is_set():
            try:
                claim = queue.claim(f"{self.holder}:{name}", states=states)
            except TunesmithError as error:  # the database is away: it may come back
                LOG.error("no job could be taken: %s", error.message)
                claim = None
            if claim is None:
                self._stopping.wait(self.setup.poll_s)
                continue
            self._claims[name] = claim
            try:
                self._handle(claim, handle)
            finally:
                del self._claims[name]

    def _handle(self, claim: Claim, handle: Callable[[Claim], None]) -> None:
        try:
            handle(claim)
        except (StaleClaimError, Stopped):
            pass  # cancelled, paused or another's by now; or this server stops
        except Exception as error:
            places = "".join(traceback.format_tb(error.__traceback__))  # not its text, which may quote a row
            LOG.error("job %s failed with %s\n%s", claim.job.id, type(error).__name__, places)
            with contextlib.suppress(StaleClaimError, TunesmithError):
                queue.fail(claim, _reason(error), code="server_error")
        self._release(claim)

    def _release(self, claim: Claim) -> None:
        """Let go of a job whose end has not done so, however long the database is away."""
        while True:
            try:
                queue.release(claim)
            except TunesmithError as error:
                LOG.error("job %s could not be let go: %s", claim.job.id, error.message)
                if self._stopping.wait(self.setup.poll_s):
                    return  # the next start lets go of it
            else:
                return

    def _validate(self, claim: Claim) -> None:
        job = claim.job
        files = f"training file: {job.training_file}"
        files += f" and validation file: {job.validation_file}" if job.validation_file else ""
        states = ("validating_files",)
        queue.write(claim, events=[Event("validating", f"Validating {files}")], only_in=states)
        try:
            base = self.setup.bases.get(job.model)
            if base is None:
                text = f"The base {job.model} is not offered by this server any more."
                raise InvalidJobError(text, code="model_not_found", param="model")
            resolved = validate(job, base)
        except InvalidJobError as error:
            queue.fail(claim, str(error), code=error.code, param=error.param)
            return
        moved = Event("validated", "Files validated, moving job to queued state")
        queue.write(claim, events=[moved], only_in=states, state="queued", resolved=resolved, holder=None)

    def _train(self, claim: Claim) -> None:
        setup = self.setup
        training = Training(
            claim, setup.command, parity=setup.parity, max_crashes=setup.max_crashes, stopping=self._stopping
        )
        training.run(poll_s=setup.poll_s)

    def _keep_leases(self) -> None:
        """Where several servers share the queue: say that we live, and see which others do not."""
        own = [f"{self.holder}:{thread.name}" for thread in self._threads]
        leases = Leases(own, lease_s=self.setup.lease_s)
        while not self._stopping.wait(self.setup.lease_s / BEATS_A_LEASE):
            try:
                leases.free_expired()
                for claim in list(self._claims.values()):
                    with contextlib.suppress(StaleClaimError):  # its own thread finds out by itself
                        queue.beat(claim)
            except TunesmithError as error:
                LOG.error("the leases could not be kept: %s", error.message)


def _reason(error: Exception) -> str:
    if isinstance(error, TunesmithError):
        return str(error)
    words = error.strerror if isinstance(error, OSError) else None
    return f"the server could not go on: {words or type(error).__name__}"
