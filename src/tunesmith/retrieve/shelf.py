"""An index on disk: generations of passages, and index.json, which says the one that counts.

Not here: what goes into a generation (index) and how it is searched (search).
A generation is written beside the one in use and counts from the moment index.json is replaced, so a reader sees all
of an index or none. The one before stays until the next change: a search under way goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, RunError
from tunesmith.folders import alone, sync

FORMAT = 1
MANIFEST = "index.json"
LOCK = ".lock"
GENERATION = "generation-"
PASSAGES, VECTORS, BM25 = "passages", "vectors", "bm25"


@dataclass(frozen=True, slots=True)
class Settings:
    """How documents become passages, in words, and the language of their terms ("auto": found out)."""

    words: int = 180
    overlap: int = 30
    language: str = "auto"


@dataclass(frozen=True, slots=True)
class Dense:
    """The model of the vectors: where it lay, and the hash by which it is known again."""

    name: str
    folder: str
    identity: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What index.json holds."""

    generation: str
    docs: str
    settings: Settings
    language: str  # that was found, or asked for
    dense: Dense | None
    files: dict[str, str]  # sha256 by name
    documents: int
    passages: int
    skipped: dict[str, str] = field(default_factory=dict)  # files that could not be read, as asked: why
    previous: str = ""
    format: int = FORMAT


def read_manifest(directory: Path) -> Manifest:
    """Raises InputError: no index is there, or one of another format."""
    try:
        found: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        todo = "Make one with `tunesmith index DOCS --out DIR`."
        raise InputError(f"{directory} holds no index.", todo) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory / MANIFEST} cannot be read ({error}).", "Remove the folder; index again."
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        what = f"{directory / MANIFEST} is of another format than this version's ({FORMAT})."
        raise InputError(what, "Remove the folder and index again.")
    dense = found.pop("dense")
    return Manifest(
        **{**found, "settings": Settings(**found["settings"])}, dense=None if dense is None else Dense(**dense)
    )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the folder and keep others from indexing into it. The lock goes with the process, however it ends.

    Raises InputError: another process has it, it holds something else than an index, or it cannot be written.
    """
    taken = InputError(f"Another process is indexing into {directory}.", "Wait for it.")
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            ours = {MANIFEST, f".{MANIFEST}.staged", LOCK}
            foreign = [path.name for path in directory.iterdir() if path.name not in ours and not _is_generation(path)]
            if foreign:
                what = f"{directory} holds other things than an index ({sorted(foreign)[0]})."
                raise InputError(what, "Give --out a folder of its own.")
            stack.enter_context(alone(directory / LOCK, otherwise=taken))
        except OSError as error:
            what = f"{directory} cannot be written ({error.strerror or error})."
            raise InputError(what, "Check its permissions, or choose another --out.") from error
        yield


def _is_generation(path: Path) -> bool:
    return path.name.startswith(GENERATION)


def new_generation(directory: Path) -> Path:
    path = directory / f"{GENERATION}{secrets.token_hex(4)}"
    path.mkdir()
    return path


def unfinished(directory: Path, manifest: Manifest | None) -> list[Path]:
    """Generations that a killed indexing left: they never count, but their vectors can be used."""
    named = {manifest.generation, manifest.previous} if manifest else set()
    return sorted(path for path in directory.iterdir() if _is_generation(path) and path.name not in named)


def commit(directory: Path, manifest: Manifest) -> None:
    """Let the manifest's generation count: its files on disk first, then the name, then what is no longer needed."""
    for folder, _, names in os.walk(directory / manifest.generation):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            sync(path)
    staged = directory / f".{MANIFEST}.staged"
    staged.write_text(json.dumps(asdict(manifest), ensure_ascii=False, indent=1), encoding="utf-8")
    sync(staged)
    staged.replace(directory / MANIFEST)
    sync(directory)
    for path in unfinished(directory, manifest):
        shutil.rmtree(path)


def open_table(generation: Path, name: str) -> Any:
    """A LanceDB table of a generation. Raises RunError where it is damaged or missing."""
    try:
        return connect(generation).open_table(name)
    except (ValueError, OSError, RuntimeError) as error:
        what = f"The index in {generation.parent} is damaged: {error}."
        raise RunError(what, "Remove the folder and index again.") from error


def connect(generation: Path) -> Any:
    """The LanceDB database of a generation. Raises InputError where LanceDB is not installed."""
    try:
        import lancedb
    except ImportError as error:
        raise InputError("An index is kept by LanceDB.", "pip install 'tunesmith[rag]'") from error
    return lancedb.connect(generation)
