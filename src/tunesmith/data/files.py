"""Writing files so that a reader sees all of a file or none of it.

Not here: what is in them.
Called by data.dataset and by the command `split`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.folders import sync


def write_synced(path: Path, lines: Iterable[str]) -> str:
    """Write lines of UTF-8 with LF ends and flush them to disk; returns the sha256 of the bytes."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for line in lines:
            content = line.encode() + b"\n"
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_new_files(files: Mapping[Path, Iterable[str]], *, force: bool = False) -> None:
    """Write all of the files or none: first beside their places, then renamed.

    Raises:
        InputError: one of them exists (and `force` is not set), or a directory cannot be written.
    """
    taken = [str(path) for path in files if path.exists() and not force]
    if taken:
        raise InputError(f"{' and '.join(taken)} exist already; nothing was written.", "Use --force, or another --out.")
    staged: dict[Path, Path] = {}
    try:
        for path, lines in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            write_synced(staged[path], lines)
        for path, part in staged.items():
            part.replace(path)
        for directory in {path.parent for path in files}:
            sync(directory)
    except OSError as error:
        place = error.filename2 or error.filename or next(iter(files)).parent
        what = f"cannot write {place} ({error.strerror or error})."
        raise InputError(what, "Check the directory's permissions and the free space.") from error
    finally:
        for part in staged.values():
            part.unlink(missing_ok=True)
