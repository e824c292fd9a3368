"""The bytes of files on disk: staged, flushed and renamed, so that a reader finds all of them or none.

Not here: whose they are and what they are called (serve.records.files, serve.records.uploads). They lie under
home()/files; a name there is made of random letters, never of anything a user said.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from tunesmith.folders import home, sync

STAGED = ".part"
RESULT = ".result"  # written by a transaction that may still be open in another process
RESULT_PATIENCE_S = 3600


def folder() -> Path:
    place = home() / "files"
    place.mkdir(mode=0o700, exist_ok=True)  # what people upload is not for every user of the machine
    return place


class Staged:
    """A file on its way in. What was not `kept` by the end of the `with` block is gone from the disk. `expected` is how
    many bytes are announced, for which room is held."""

    live: ClassVar[set[Staged]] = set()

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.expected = 0
        self.path = folder() / f"{secrets.token_hex(12)}{STAGED}"
        self.file = self.path.open("xb", buffering=0)
        self.bytes = 0
        self.kept = False
        self.live.add(self)

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.live.discard(self)
        self.file.close()
        if not self.kept:
            self.path.unlink(missing_ok=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises OSError when the disk is full; nothing of the file is left then."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.bytes += len(data)

    def flush(self) -> None:
        """Wait until the bytes are on the disk. Nothing is written after it."""
        os.fsync(self.file.fileno())
        self.file.close()

    def settle(self, name: str) -> None:
        """Give the flushed bytes the name they stay under, which takes no time."""
        place = self.path.with_name(name)
        self.path.replace(place)
        self.path = place
        sync(place.parent)


def arriving_bytes(owner: str, *, beside: Staged) -> int:
    """What an owner's other files on their way in take, or will."""
    others = (staged for staged in list(Staged.live) if staged.owner == owner and staged is not beside)
    return sum(max(staged.bytes, staged.expected) for staged in others)


def remove(names: Iterable[str]) -> None:
    for name in names:
        (folder() / name).unlink(missing_ok=True)


def sweep(known: Container[str], *, marks: Sequence[str]) -> int:
    """At the start of the only server of this home: remove what a process that was killed left behind: staged files,
    and those that carry one of `marks` and are not `known`. Gives the number of files removed."""
    removed = 0
    for path in folder().iterdir():
        is_young = path.suffix == RESULT and time.time() - path.stat().st_mtime < RESULT_PATIENCE_S
        is_lost = path.name.startswith(tuple(marks)) and path.name not in known and not is_young
        if path.suffix == STAGED or is_lost:
            path.unlink(missing_ok=True)
            removed += 1
    return removed
