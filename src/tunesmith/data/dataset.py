"""A Dataset: an immutable, content-addressed version of examples with parent, operations and row ledger.

Not here: reading the user's file (load), choosing who is held out (split).
Called by the commands that keep a version (`split`, `train`) and by the web pages that show one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.chat import Example, parse_row
from tunesmith.data.files import sync_directory, write_synced
from tunesmith.data.ledger import LedgerRow, check_conservation, complete_ledger, counts_of, ledger_of
from tunesmith.data.load import Loaded, SourceRow
from tunesmith.data.split import split
from tunesmith.errors import InputError

EXAMPLES, LEDGER, MANIFEST = "examples.jsonl", "ledger.jsonl", "manifest.json"
AGAIN = "Nothing may edit a version: delete its directory and make it again from its source."


@dataclass(frozen=True, slots=True)
class Source:
    """The user's file a version came from: name, sha256 of its bytes, number of physical lines."""

    name: str
    sha256: str
    lines: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """One version as it lies on disk. `rows` keep the line numbers of the source file."""

    id: str
    directory: Path
    created: str  # ISO 8601, UTC
    source: Source
    rows: tuple[SourceRow, ...]
    ledger: tuple[LedgerRow, ...]
    parent: str | None = None
    operations: tuple[Mapping[str, Any], ...] = ()

    @property
    def examples(self) -> list[Example]:
        return [row.example for row in self.rows]


def write_loaded(root: str | Path, loaded: Loaded) -> Dataset:
    """The first version of a file: every good row trained, blank lines dropped, faulty lines rejected."""
    source = Source(loaded.path.name, loaded.sha256, loaded.num_lines)
    return write_dataset(root, loaded.examples, source=source, ledger=ledger_of(loaded))


def write_dataset(
    root: str | Path,
    rows: Sequence[SourceRow],
    *,
    source: Source,
    parent: str | None = None,
    operations: Sequence[Mapping[str, Any]] = (),
    ledger: Iterable[LedgerRow] = (),
) -> Dataset:
    """Write `<root>/<id>/` as a whole or not at all; the version that is there already is returned as it is.

    `ledger` names the lines that are no rows here (and any row whose status is not 'trained').

    Raises:
        RunError: the ledger does not account for each of `source.lines` lines once.
        InputError: the directory cannot be written, or the version there was changed by hand.
    """
    root = Path(root)
    full = complete_ledger(rows, ledger)
    check_conservation(full, source.lines)
    content_id = dataset_id([row.example for row in rows], parent=parent, operations=operations)
    directory = root / content_id
    if not directory.exists():
        created = datetime.now(UTC).isoformat(timespec="seconds")
        head = Dataset(content_id, directory, created, source, tuple(rows), tuple(full), parent, tuple(operations))
        try:
            _write_version(root, head)
        except OSError as error:
            what = f"the dataset cannot be written to {root} ({error.strerror or error})."
            raise InputError(what, "Check the directory's permissions and the free space.") from error
    return read_dataset(directory)


def dataset_id(examples: Sequence[Example], *, parent: str | None, operations: Sequence[Mapping[str, Any]]) -> str:
    """First 16 hex digits of the sha256 over the example ids in order, the parent and the operations."""
    body = [[example.id for example in examples], parent, [dict(step) for step in operations]]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def read_dataset(directory: str | Path) -> Dataset:
    """Read a version and verify it against its manifest.

    Raises:
        InputError: there is no version here, or one of its files is missing or was changed.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    try:
        texts = {name: _verified(directory / name, manifest["files"][name]) for name in (EXAMPLES, LEDGER)}
        ledger = tuple(LedgerRow(**json.loads(line)) for line in texts[LEDGER].splitlines())
        rows = _with_lines(_examples(texts[EXAMPLES], directory), ledger)
        source, parent, steps = Source(**manifest["source"]), manifest["parent"], tuple(manifest["operations"])
        created = manifest["created"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{directory / MANIFEST} was changed ({error!r}).", AGAIN) from error
    found = dataset_id([row.example for row in rows], parent=parent, operations=steps)
    if found != manifest["id"]:
        raise InputError(f"{directory / MANIFEST} says id {manifest['id']}, its contents give {found}.", AGAIN)
    return Dataset(found, directory, created, source, rows, ledger, parent, steps)


def split_dataset(
    root: str | Path, dataset: Dataset, *, fraction: float = 0.1, count: int | None = None, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """The two children of a version: train and held out. Both carry the same ledger, which says where each line went.

    Raises:
        InputError: as `split` and `write_dataset` do.
    """
    train, held = split(dataset.examples, fraction=fraction, seed=seed, count=count)
    held_lines = {dataset.rows[index].line for index in held}
    ledger = [
        replace(row, status="held_out", reason="held out by split") if row.line in held_lines else row
        for row in dataset.ledger
    ]
    share = {"fraction": fraction} if count is None else {"count": count}

    def child(part: str, indices: list[int]) -> Dataset:
        step = {"operation": "split", "part": part, "seed": seed, **share}
        rows = [dataset.rows[index] for index in indices]
        steps = (*dataset.operations, step)
        return write_dataset(root, rows, source=dataset.source, parent=dataset.id, operations=steps, ledger=ledger)

    return child("train", train), child("held_out", held)


def _write_version(root: Path, dataset: Dataset) -> None:
    """Stage in the same file system, flush to disk, rename; another process that was faster wins."""
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=root, prefix=f".{dataset.id}-"))
    try:
        staging.chmod(0o755)
        files = {
            EXAMPLES: write_synced(staging / EXAMPLES, (row.example.to_json() for row in dataset.rows)),
            LEDGER: write_synced(staging / LEDGER, (json.dumps(row.as_dict()) for row in dataset.ledger)),
        }
        write_synced(staging / MANIFEST, [json.dumps(_manifest(dataset, files), indent=2)])
        sync_directory(staging)
        staging.rename(dataset.directory)
        sync_directory(root)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(staging)


def _manifest(dataset: Dataset, files: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "created": dataset.created,
        "source": asdict(dataset.source),
        "rows": len(dataset.rows),
        "parent": dataset.parent,
        "operations": [dict(step) for step in dataset.operations],
        "ledger": counts_of(dataset.ledger),
        "files": dict(files),  # sha256 of each
        "tunesmith": __version__,
    }


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        todo = "Name the directory of one version: it holds manifest.json."
        raise InputError(f"{directory} is no dataset ({path.name}: {error.strerror or error}).", todo) from error
    except ValueError as error:
        raise InputError(f"{path} was changed: it is no JSON.", AGAIN) from error
    if not isinstance(manifest, dict) or "id" not in manifest:
        raise InputError(f"{path} was changed: it has no id.", AGAIN)
    return manifest


def _verified(path: Path, sha256: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).", AGAIN) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path} was changed after it was written (its sha256 differs).", AGAIN)
    return content.decode("utf-8")


def _examples(text: str, directory: Path) -> list[Example]:
    examples = []
    for line in text.split("\n")[:-1]:
        example, problems = parse_row(json.loads(line))
        if example is None:
            raise InputError(f"{directory / EXAMPLES} holds a row this version cannot read: {problems[0].what}", AGAIN)
        examples.append(example)
    return examples


def _with_lines(examples: Sequence[Example], ledger: Sequence[LedgerRow]) -> tuple[SourceRow, ...]:
    """Give each example its line again: equal examples take their lines in order."""
    lines: dict[str | None, deque[int]] = defaultdict(deque)
    for row in ledger:
        lines[row.example].append(row.line)
    try:
        return tuple(SourceRow(lines[example.id].popleft(), example) for example in examples)
    except IndexError:
        raise ValueError("an example is not in the ledger") from None
