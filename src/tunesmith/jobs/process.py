"""A worker process from outside: start the trainer on a job's recipe, ask it to stop, end one that was left behind.

Not here: what it sets for itself before it becomes the trainer (jobs.launch), what it writes (runs). It runs in a
session of its own, so that Ctrl-C in the server's terminal does not reach it, and ends with the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.folders import home
from tunesmith.jobs.folder import JobFolder
from tunesmith.serve.access import API_KEY_VARIABLE

INTERRUPTED_EXIT = 75  # of the trainer, when it was told to stop and has saved
BAD_INPUT_EXIT = 2
STOP_S = 60.0  # a step and a checkpoint; then it is killed, which costs the steps since the last checkpoint
LOG_TAIL_BYTES = 4096
POLL_S = 0.05


def train_command(folder: JobFolder) -> list[str]:
    train = ["-m", "tunesmith", "train", str(folder.recipe), "--out", str(folder.run_dir), "--json"]
    return [sys.executable, *train]


class Worker:
    """A running worker process of this server. Start it on a thread that outlives it: it is told of that thread's
    end, not of the server's."""

    def __init__(self, folder: JobFolder, command: Sequence[str], environment: Mapping[str, str]) -> None:
        launch = [sys.executable, "-m", "tunesmith.jobs.launch", str(folder.lock), str(os.getpid()), *command]
        inherited = {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}
        inherited |= {"TUNESMITH_HOME": str(home()), **environment}
        with folder.log.open("ab") as log:
            self.log_start = log.tell()
            self._process = subprocess.Popen(
                launch, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=inherited, start_new_session=True
            )
        self._folder = folder

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def stop(self, *, save: bool, grace_s: float = STOP_S) -> None:
        """End it and what it started; with `save` it may write its checkpoint first. Nothing where it has ended."""
        if self.exit_code() is not None:
            return
        if save:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
                return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        """The trainer's error, or else the last line it wrote."""
        with self._folder.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self.log_start, size - LOG_TAIL_BYTES))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else lines[-1] if lines else "it wrote nothing"


def end_leftover(folder: JobFolder, *, grace_s: float = STOP_S) -> None:
    """End a worker of this job that an earlier server left behind; it was told to save when that server ended."""
    if not folder.lock.is_file():
        return
    deadline = time.monotonic() + grace_s
    with folder.lock.open("r+") as lock:
        while not is_free(lock.fileno()):
            if time.monotonic() >= deadline:
                pid = _pid_in(folder.lock)
                with contextlib.suppress(ProcessLookupError):
                    if pid:
                        os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + grace_s
            time.sleep(POLL_S)


def is_free(descriptor: int) -> bool:
    """Whether no process holds the lock on an open file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _pid_in(lock: Path) -> int | None:
    text = lock.read_text()
    return int(text) if text.isdigit() else None
