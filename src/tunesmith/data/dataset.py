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
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.chat import Example, parse_row
from tunesmith.data.files import write_synced
from tunesmith.data.ledger import LedgerRow, check_conservation, complete_ledger, counts_of, ledger_of
from tunesmith.data.load import Loaded, SourceRow
from tunesmith.data.split import split
from tunesmith.errors import InputError
from tunesmith.folders import sync

EXAMPLES, LEDGER, LEFT, MANIFEST = "examples.jsonl", "ledger.jsonl", "left.jsonl", "manifest.json"
AGAIN = "Nothing may edit a version: delete its directory and make it again from its source."


@dataclass(frozen=True, slots=True)
class Source:
    """The user's file a version came from: name, sha256 of its bytes, number of physical lines."""

    name: str
    sha256: str
    lines: int


class Examples(Sequence[Example]):
    """The examples of a version, each read from its normal form when it is asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._read: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if index not in self._read:
            self._read[index] = _example(self.texts[index])
        return self._read[index]


@dataclass(frozen=True)
class Dataset:
    """One version as it lies on disk: `texts` are its examples in normal form, `lines` their lines in the source.

    `left` are the rows of the parent that are not here any more, with the parent's line and the reason.
    """

    id: str
    directory: Path
    created: str  # ISO 8601, UTC
    source: Source
    texts: tuple[str, ...] = field(repr=False)
    lines: tuple[int, ...] = field(repr=False)
    ledger: tuple[LedgerRow, ...]
    parent: str | None = None
    operations: tuple[Mapping[str, Any], ...] = ()
    left: tuple[LedgerRow, ...] = ()

    @cached_property
    def rows(self) -> tuple[SourceRow, ...]:
        return tuple(map(SourceRow, self.lines, map(_example, self.texts)))

    @property
    def examples(self) -> list[Example]:
        return [row.example for row in self.rows]

    @cached_property
    def ids(self) -> list[str]:
        """The content id of each row."""
        return [content_id(text) for text in self.texts]

    @property
    def row_numbers(self) -> list[int | None]:
        """The number each row keeps across the versions of a named data set; None outside one."""
        return _numbers(self.lines, self.ledger)


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
    left: Sequence[LedgerRow] = (),
) -> Dataset:
    """Write `<root>/<id>/` as a whole or not at all. A version that is there already stays as it is; the one returned
    has the source and the lines of the rows given.

    `ledger` names the lines that are no rows here (and any row that has a number, or is not 'trained').

    Raises:
        RunError: the ledger does not account for each of `source.lines` lines once.
        InputError: the directory cannot be written, or the version there was changed by hand.
    """
    root = Path(root)
    full = complete_ledger(rows, ledger)
    check_conservation(full, source.lines)
    texts, lines = tuple(row.example.to_json() for row in rows), tuple(row.line for row in rows)
    ids = [content_id(text) for text in texts]
    version = dataset_id(ids, parent=parent, operations=operations, numbers=_numbers(lines, full))
    directory = root / version
    if directory.exists():  # perhaps written for another file, with the same rows on other lines
        there = replace(read_dataset(directory), source=source, lines=lines, ledger=tuple(full))
        vars(there).update(rows=tuple(rows), ids=ids)
        return there
    created = datetime.now(UTC).isoformat(timespec="seconds")
    steps = tuple(operations)
    made = Dataset(version, directory, created, source, texts, lines, tuple(full), parent, steps, tuple(left))
    vars(made).update(rows=tuple(rows), ids=ids)  # known here, so not to be read again
    try:
        _write_version(root, made)
    except OSError as error:
        what = f"the dataset cannot be written to {root} ({error.strerror or error})."
        raise InputError(what, "Check the directory's permissions and the free space.") from error
    return made


def content_id(text: str) -> str:
    """`Example.id`, from the example's normal form."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dataset_id(
    example_ids: Sequence[str],
    *,
    parent: str | None,
    operations: Sequence[Mapping[str, Any]],
    numbers: Sequence[int | None] = (),
) -> str:
    """First 16 hex digits of the sha256 over the example ids in order, the parent, the operations and row numbers."""
    body: list[Any] = [list(example_ids), parent, [dict(step) for step in operations]]
    if any(number is not None for number in numbers):
        body.append(list(numbers))
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def read_dataset(directory: str | Path) -> Dataset:
    """Read a version and verify it against its manifest.

    Raises:
        InputError: there is no version here, or one of its files is missing or was changed.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    try:
        texts = {name: _verified(directory / name, sha256) for name, sha256 in manifest["files"].items()}
        ledger, left = _ledger(texts[LEDGER]), _ledger(texts.get(LEFT, ""))
        rows = tuple(texts[EXAMPLES].split("\n")[:-1])
        ids = [content_id(text) for text in rows]
        lines = _lines(ids, ledger)
        source, parent, steps = Source(**manifest["source"]), manifest["parent"], tuple(manifest["operations"])
        created = manifest["created"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{directory / MANIFEST} was changed ({error!r}).", AGAIN) from error
    found = dataset_id(ids, parent=parent, operations=steps, numbers=_numbers(lines, ledger))
    if found != manifest["id"]:
        raise InputError(f"{directory / MANIFEST} says id {manifest['id']}, its contents give {found}.", AGAIN)
    dataset = Dataset(found, directory, created, source, rows, lines, ledger, parent, steps, left)
    vars(dataset).update(ids=ids)
    return dataset


def read_left(root: Path, manifest: Mapping[str, Any]) -> tuple[LedgerRow, ...]:
    """Only the rows of its parent that a version does not have any more.

    Raises:
        InputError: the file is missing or was changed.
    """
    if LEFT not in manifest["files"]:
        return ()
    return _ledger(_verified(root / manifest["id"] / LEFT, manifest["files"][LEFT]))


def read_row(root: Path, manifest: Mapping[str, Any], *, number: int) -> tuple[LedgerRow | None, Example | None]:
    """One row of a version by its number, without reading the others: its ledger line, and the row if it is there.

    Raises:
        InputError: a file of the version is missing or was changed.
    """
    directory = root / manifest["id"]
    ledger = _verified(directory / LEDGER, manifest["files"][LEDGER]).splitlines()
    row = next((LedgerRow(**json.loads(line)) for line in ledger if line.endswith(f'"row": {number}}}')), None)
    if row is None or row.status in ("rejected", "dropped"):
        return row, None
    texts = _verified(directory / EXAMPLES, manifest["files"][EXAMPLES]).split("\n")[:-1]
    return row, next((_example(text) for text in texts if content_id(text) == row.example), None)


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
            EXAMPLES: write_synced(staging / EXAMPLES, dataset.texts),
            LEDGER: write_synced(staging / LEDGER, (json.dumps(row.as_dict()) for row in dataset.ledger)),
        }
        if dataset.left:
            files[LEFT] = write_synced(staging / LEFT, (json.dumps(row.as_dict()) for row in dataset.left))
        write_synced(staging / MANIFEST, [json.dumps(_manifest(dataset, files), indent=2)])
        sync(staging)
        staging.rename(dataset.directory)
        sync(root)
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
        "rows": len(dataset.texts),
        "parent": dataset.parent,
        "operations": [dict(step) for step in dataset.operations],
        "ledger": counts_of(dataset.ledger),
        "files": dict(files),  # sha256 of each
        "tunesmith": __version__,
    }


def read_manifest(directory: Path) -> dict[str, Any]:
    """What the manifest of a version says, not yet verified against the version's files.

    Raises:
        InputError: there is no version here, or its manifest was changed.
    """
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


def _ledger(text: str) -> tuple[LedgerRow, ...]:
    return tuple(LedgerRow(**json.loads(line)) for line in text.splitlines())


def _example(text: str) -> Example:
    example, problems = parse_row(json.loads(text))
    if example is None:
        raise InputError(f"a version holds a row that cannot be read any more: {problems[0].what}", AGAIN)
    return example


def _lines(ids: Sequence[str], ledger: Sequence[LedgerRow]) -> tuple[int, ...]:
    """The line of each row: equal rows take their lines in order."""
    lines: dict[str | None, deque[int]] = defaultdict(deque)
    for row in ledger:
        if row.status not in ("rejected", "dropped"):
            lines[row.example].append(row.line)
    try:
        return tuple(lines[id].popleft() for id in ids)
    except IndexError:
        raise ValueError("an example is not in the ledger") from None


def _numbers(lines: Sequence[int], ledger: Iterable[LedgerRow]) -> list[int | None]:
    by_line = {row.line: row.row for row in ledger}
    return [by_line[line] for line in lines]
