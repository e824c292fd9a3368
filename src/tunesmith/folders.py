"""Folders as such: the home folder, a folder that one process works in, names that must be on the disk.

Not here: what lies in them. Everything under the home folder is made when it is first needed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import InputError


def home() -> Path:
    """TUNESMITH_HOME, or ~/.tunesmith; made when missing."""
    folder = Path(os.environ.get("TUNESMITH_HOME") or Path.home() / ".tunesmith").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be used: {error.strerror}.", "Set TUNESMITH_HOME to a folder you can write."
        ) from error
    return folder


@contextlib.contextmanager
def alone(lock: Path, *, otherwise: InputError) -> Iterator[None]:
    """Only one process at a time. The lock goes with the process, however it ends.

    Raises `otherwise` at once when another process has it, and OSError when the file cannot be written.
    """
    import fcntl

    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise otherwise from error
        yield


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; folders only where the system can (not on Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
