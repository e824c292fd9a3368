"""The first thing a worker process runs: it locks its job, asks to be ended with the server, and becomes the trainer.

Not here: starting it, ending it (jobs.process). `python -m tunesmith.jobs.launch LOCK PARENT COMMAND...`; what it sets
stays in force across the exec: the lock lasts for as long as the trainer lives, however it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ORPHANED_EXIT = 75
NICENESS = 5  # requests go before training where both want the processor


def main(lock: str, parent: str, *command: str) -> None:
    _end_with(int(parent))
    hold(Path(lock))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the rows
    os.nice(NICENESS)
    _offer_to_the_memory_killer()
    os.execv(command[0], command)


def hold(lock: Path) -> int:
    """Take the lock, waiting for another worker of this job to end, and write our process id into it. The descriptor
    stays open, also in the program this process becomes."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    os.set_inheritable(descriptor, True)
    return descriptor


def _end_with(parent: int) -> None:
    """Get SIGTERM when the server's thread that started us ends, also by kill -9; the trainer then saves and ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(ORPHANED_EXIT)


def _offer_to_the_memory_killer() -> None:
    """When memory runs out, the system ends the worker, which is started again, and not the server."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        return  # another system, or not allowed: the system decides as it would


if __name__ == "__main__":
    main(*sys.argv[1:])
