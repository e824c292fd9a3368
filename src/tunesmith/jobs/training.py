"""One job from the queue to its end: a worker process, started again after a loss, watched, and its result published.

Not here: threads and claims (jobs.dispatcher). Everything is decided from the run directory and the job's row, so a
dispatcher that was killed at any line is followed by one that goes on from there.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.errors import DatabaseError
from tunesmith.jobs.folder import JobFolder
from tunesmith.jobs.parity import Parity
from tunesmith.jobs.process import BAD_INPUT_EXIT, INTERRUPTED_EXIT, Worker, end_leftover
from tunesmith.jobs.publishing import KEPT_EPOCHS, checkpoint_of, epoch_ends, result_of
from tunesmith.jobs.watch import Progress, best_step, dropped_rows, tokens_seen
from tunesmith.runs import Run
from tunesmith.serve.records import queue
from tunesmith.serve.records.events import Event, list_checkpoints
from tunesmith.serve.records.jobs import TRAINING, Job
from tunesmith.serve.records.queue import Claim

LOG = logging.getLogger("tunesmith.jobs")
EVENTS_AT_ONCE = 500
CANCEL_S = 5.0  # a worker whose work is not wanted any more ends by itself, or is ended


class Stopped(Exception):  # noqa: N818  (a request, not an error)
    """The server stops; the job is back in the queue."""


@dataclass(slots=True)
class Training:
    """`run` returns when the job has ended or is paused. Raises StaleClaimError when it is no longer ours, Stopped."""

    claim: Claim
    command: Callable[[JobFolder], Sequence[str]]
    parity: Parity
    max_crashes: int
    stopping: threading.Event
    attempt: int = field(init=False)
    crashes: int = field(init=False)
    progress: Progress | None = field(init=False, default=None)
    told_step: int | None = field(init=False, default=None)  # of the newest checkpoint that is known

    def __post_init__(self) -> None:
        self.attempt, self.crashes = self.claim.job.attempt, self.claim.job.crashes

    @property
    def folder(self) -> JobFolder:
        return JobFolder.of(self.claim.job)

    def run(self, *, poll_s: float) -> None:
        end_leftover(self.folder)
        lost = self.claim.job.state == "running"  # its last holder ended without letting go
        while not _finished(self.folder.run):
            state = queue.look(self.claim)
            if state == "pausing":
                self._pause("The job was paused")
            if state not in ("queued", "running"):
                return
            self._begin(lost=lost)
            code = self._watch(poll_s)
            if code is not None and not _finished(self.folder.run) and not self._goes_on(*code):
                return
            lost = True
        self._publish()

    def _begin(self, *, lost: bool) -> None:
        """Say that it is running, and where it goes on."""
        step = self.folder.step()
        if self.attempt == 0:
            event = Event("started", "Fine-tuning job started")
            self.attempt = 1
        elif lost:
            self.attempt += 1
            text = f"Fine-tuning job restarted from step {step} (attempt {self.attempt})"
            event = Event(f"attempt {self.attempt}", text, level="warn")
        else:
            event = Event(f"resumed {self.claim.epoch}", f"Fine-tuning job resumed from step {step}")
        allowed = ("queued", "running")
        queue.write(self.claim, events=[event], only_in=allowed, state="running", attempt=self.attempt)

    def _watch(self, poll_s: float) -> tuple[int, str] | None:
        """A worker's life: its exit code and last words; None when it was stopped for a pause.

        Raises Stopped, or StaleClaimError for a job that was cancelled or lost; no worker outlives this call.
        """
        worker = Worker(self.folder, self.command(self.folder), _environment(self.claim.job))
        try:
            while (code := worker.exit_code()) is None:
                state = self._tell()
                if state == "pausing":
                    worker.stop(save=True)
                    return None
                if state == "cancelled":
                    worker.stop(save=True, grace_s=CANCEL_S)
                    raise queue.StaleClaimError(self.claim.job.id)
                if self.stopping.is_set():
                    worker.stop(save=True)
                    queue.write(self.claim, only_in=("running",), state="queued", holder=None)
                    raise Stopped
                self.stopping.wait(poll_s)
        finally:
            worker.stop(save=False)
        self._tell()
        return code, worker.last_words()

    def _tell(self, *, ended: bool = False) -> str:
        """Write down what the run directory has of news; the job's state. Nothing is lost while the database is away:
        it is told later."""
        try:
            state = queue.look(self.claim)
            run = self.folder.run
            if state in TRAINING and run and (run.directory / "settings.json").is_file():
                self._tell_of(run, ended)
            return state
        except DatabaseError as error:
            LOG.error("job %s: %s", self.claim.job.id, error.message)
            self.progress = None  # read from the start again
            return "running"

    def _tell_of(self, run: Run, ended: bool) -> None:
        events = []
        if self.progress is None:
            self.progress = Progress(run)
            events = dropped_rows(run)
        events += self.progress.news(ended=ended)
        for start in range(0, len(events), EVENTS_AT_ONCE):
            some = events[start : start + EVENTS_AT_ONCE]
            queue.write(self.claim, events=some, estimated_finish=self.progress.estimated_finish())
        try:
            self._publish_epochs(run)
        except OSError as error:  # the disk is full, or the trainer wrote the checkpoint anew just now
            if ended:
                raise
            LOG.warning("job %s: a checkpoint could not be read or kept: %s", self.claim.job.id, error.strerror)

    def _publish_epochs(self, run: Run) -> None:
        """Make the checkpoints of epochs known that have come; those before the last few go."""
        job = self.claim.job
        if self.told_step is None:
            self.told_step = max((one.step for one in list_checkpoints(job.id, owner=job.owner)), default=0)
        for step in epoch_ends(run, after=self.told_step):
            made, checkpoint = checkpoint_of(job, run, step=step)
            for folder in queue.publish_checkpoint(self.claim, made, checkpoint=checkpoint, keep=KEPT_EPOCHS):
                shutil.rmtree(folder, ignore_errors=True)
            self.told_step = step

    def _goes_on(self, code: int, last_words: str) -> bool:
        """Whether a worker that ended early is to be followed by another; if not, the job has ended or is paused."""
        run = self.folder.run
        if code == INTERRUPTED_EXIT:  # someone else told it to stop, and it has saved
            return not self.stopping.wait(1)
        if code == 1 and run and run.status["state"] == "failed":
            reason = str(run.status["reason"])
            if os.strerror(errno.ENOSPC) in reason:
                self._pause(f"The job was paused: {reason}", only_in=("running", "pausing"))
            else:  # the same data and seed would fail the same way
                queue.fail(self.claim, reason, code="training_failed")
            return False
        if code == BAD_INPUT_EXIT:
            queue.fail(self.claim, last_words, code="training_refused")
            return False
        self.crashes += 1
        queue.write(self.claim, crashes=self.crashes)
        if self.crashes < self.max_crashes:
            return True
        text = f"The training process ended {self.crashes} times (last: {_ending(code)}). Its last words: {last_words}"
        queue.fail(self.claim, text, code="training_crashed")
        return False

    def _pause(self, text: str, *, only_in: Sequence[str] = ("pausing",)) -> None:
        event = Event(None, text, level="info" if only_in == ("pausing",) else "warn")
        queue.write(self.claim, events=[event], only_in=only_in, state="paused", holder=None)

    def _publish(self) -> None:
        """The run is finished and proved. It is published once the served path answers as the trainer's model does."""
        job, run = self.claim.job, Run(self.folder.run_dir)
        self._tell(ended=True)
        queue.write(self.claim, events=best_step(run))
        if reason := self.parity(job, run):
            text = f"The model is not published, for served it does not answer as it was trained: {reason}."
            queue.fail(self.claim, text, code="serving_differs", withdraw=True)
            return
        queue.finish(self.claim, result_of(job, run), trained_tokens=tokens_seen(run))


def _finished(run: Run | None) -> bool:
    return run is not None and run.status["state"] == "finished"


def _ending(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"exit code {code}"


def _environment(job: Job) -> dict[str, str]:
    """What the tracker's package reads of a wandb integration."""
    found: dict[str, str] = {}
    for integration in job.integrations or ():
        wandb = integration["wandb"]
        found |= {f"WANDB_{name.upper()}": wandb[name] for name in ("project", "name", "entity") if name in wandb}
        if tags := wandb.get("tags"):
            found["WANDB_TAGS"] = ",".join(tags)
    return found
