"""Named data sets: a name points at its newest version, every version at its parent, and rows keep their numbers.

Not here: a version on disk (dataset), which row is which (matching), the terminal (cli.data).
Called by the commands `data` and `review`; `<root>/names/` holds one small file a name, replaced whole under a lock.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.chat import Example
from tunesmith.data.dataset import Dataset, Examples, Source, read_dataset, read_left, read_manifest, write_dataset
from tunesmith.data.files import write_synced
from tunesmith.data.ledger import LedgerRow, ledger_of
from tunesmith.data.load import Loaded, SourceRow
from tunesmith.data.versions.decisions import Decision, DecisionLog, state_of
from tunesmith.data.versions.matching import match
from tunesmith.errors import InputError
from tunesmith.folders import sync

NAMES, TAGS = "names", "tags.json"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
VERSION_ID = re.compile(r"[0-9a-f]{4,16}")


@dataclass(frozen=True, slots=True)
class Commit:
    """What became of a change: the version the name points at now, whether it is new, and the rows it changed."""

    dataset: Dataset
    is_new: bool
    counts: Mapping[str, int]  # added, removed, edited, and what decisions did: rejected, reviewed


def add(root: Path, loaded: Loaded, *, name: str, message: str = "", as_is: bool = False) -> Commit:
    """Make a file the next version of `name`. Decisions made about the very same rows hold, unless `as_is`.

    A rejected row stays out, an edit or an approval stays in; the ledger says so for each line.

    Raises:
        InputError: the name cannot be used, or nothing can be written to `root`.
    """
    check_name(name)
    with locked(root):
        head = head_of(root, name)
        if head is None and name in tags(root):
            raise InputError(f"{name!r} is a tag already.", "Choose another --name.")
        ids = [row.example.id for row in loaded.examples]
        numbers = _numbers(root, head, [row.example for row in loaded.examples], ids)
        decisions = {} if as_is else decisions_of(root, name).by_key()
        settled = settle(loaded.examples, numbers, ids=ids, decisions=decisions)
        ledger = _numbered(ledger_of(loaded, ids), {**_by_line(loaded.examples, numbers)}, settled.overrides)
        source = Source(loaded.path.name, loaded.sha256, loaded.num_lines)
        step = {"operation": "add", "name": name, "file": loaded.path.name} | ({"message": message} if message else {})
        return commit(root, head, settled=settled, source=source, ledger=ledger, steps=(step,))


@dataclass(frozen=True, slots=True)
class Settled:
    """Rows after decisions: who is left, with numbers, and the ledger lines that decisions changed."""

    rows: list[SourceRow]
    ids: list[str]
    numbers: list[int]
    overrides: dict[int, LedgerRow]  # by line
    counts: Counter[str]


def settle(
    rows: Sequence[SourceRow],
    numbers: Sequence[int],
    *,
    ids: Sequence[str],
    decisions: Mapping[str, Sequence[Decision]],
) -> Settled:
    """Apply what was decided about each numbered row: a rejected one goes, an edited or approved one is replaced."""
    done = Settled([], [], [], {}, Counter())
    for row, number, id in zip(rows, numbers, ids, strict=True):
        said = decisions.get(str(number))
        if said:
            state = state_of(row.example, said)
            if state.status == "rejected":
                done.overrides[row.line] = LedgerRow(row.line, id, "rejected", state.reason, number)
                done.counts["rejected"] += 1
                continue
            if state.example != row.example:
                row, id = SourceRow(row.line, state.example), state.example.id
                done.overrides[row.line] = LedgerRow(row.line, id, "trained", state.reason, number)
                done.counts["reviewed"] += 1
        done.rows.append(row)
        done.ids.append(id)
        done.numbers.append(number)
    return done


def commit(
    root: Path,
    head: Dataset | None,
    *,
    settled: Settled,
    source: Source,
    ledger: Sequence[LedgerRow],
    steps: Sequence[Mapping[str, Any]],
) -> Commit:
    """Write the next version and move the name to it; the version before if that holds the same rows. Call it locked.

    The last of `steps` is this change; the counts and the next free number are put into it.
    """
    before = _places(numbers_of(head), head.lines, head.ids) if head else {}
    after = _places(settled.numbers, [row.line for row in settled.rows], settled.ids)
    if head and list(before.items()) == list(after.items()):
        return Commit(head, False, settled.counts)
    new, gone = after.keys() - before.keys(), before.keys() - after.keys()
    edited = sum(after[number][1] != before[number][1] for number in after.keys() & before.keys())
    counts = {"added": len(new), "removed": len(gone), "edited": edited}
    rejected = {row.row: row.reason for row in ledger if row.status == "rejected" and row.row is not None}
    left = [
        LedgerRow(line, id, "rejected" if number in rejected else "dropped", reason, number)
        for number, (line, id) in before.items()
        if number in gone
        for reason in [rejected.get(number, f"not in {source.name}")]
    ]
    next_row = max([_next_row(head), *(number + 1 for number in (*settled.numbers, *rejected))])
    step = {**steps[-1], **counts, "next_row": next_row}
    parent = head.id if head else None
    made = write_dataset(
        root, settled.rows, source=source, parent=parent, operations=(*steps[:-1], step), ledger=ledger, left=left
    )
    _point(root, step["name"], made.id)
    return Commit(made, True, counts | settled.counts)


def numbers_of(dataset: Dataset) -> list[int]:
    """The number of each row of a version of a named data set.

    Raises:
        InputError: the version belongs to no name.
    """
    numbers = [number for number in dataset.row_numbers if number is not None]
    if len(numbers) < len(dataset.texts):
        raise InputError(f"version {dataset.id} belongs to no named data set.", "Use `tunesmith data add FILE --name`.")
    return numbers


def name_of(operations: Sequence[Mapping[str, Any]]) -> str | None:
    """The data set that a version with these operations belongs to."""
    return next((str(step["name"]) for step in reversed(operations) if "name" in step), None)


def names(root: Path) -> dict[str, str]:
    """Every name with the id of its newest version, in the order of the alphabet."""
    found = {path.stem: _read_object(path)["head"] for path in (root / NAMES).glob("*.head")}
    return dict(sorted(found.items()))


def head_of(root: Path, name: str) -> Dataset | None:
    """The newest version of a name, None when there is no such name."""
    path = root / NAMES / f"{name}.head"
    return read_dataset(root / _read_object(path)["head"]) if path.exists() else None


def decisions_of(root: Path, name: str) -> DecisionLog:
    """The review log of a name; its keys are row numbers."""
    return DecisionLog(root / NAMES / f"{name}.review.jsonl")


def lineage(root: Path, version: str) -> Iterator[dict[str, Any]]:
    """The manifests of a version and its ancestors, newest first; stops where a parent was deleted."""
    following: str | None = version
    while following and (root / following).is_dir():
        manifest = read_manifest(root / following)
        yield manifest
        following = manifest["parent"]


def resolve(root: Path, text: str) -> str:
    """The id of the version that a name (its newest), a tag, or an id or its first four or more digits mean.

    Raises:
        InputError: it means none, or several.
    """
    known = names(root)
    if text in known:
        return known[text]
    if text in (by_tag := tags(root)):
        return by_tag[text]
    found = []
    if VERSION_ID.fullmatch(text):
        found = [path.parent.name for path in root.glob(f"{text}*/manifest.json")]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{text} begins {len(found)} ids: {', '.join(sorted(found)[:5])}.", "Give more digits.")
    have = f"There are {', '.join([*known, *by_tag][:10])}." if known else "There are no data sets yet."
    raise InputError(f"there is no data set, tag or version {text!r} in {root}.", f"{have} `tunesmith data log` lists.")


def tags(root: Path) -> dict[str, str]:
    path = root / TAGS
    return _read_object(path) if path.exists() else {}


def tag(root: Path, version: str, *, name: str, move: bool = False) -> None:
    """Give a version a name that stays on it.

    Raises:
        InputError: the tag is a data set's name, or stands on another version and `move` is not set.
    """
    check_name(name)
    with locked(root):
        known = tags(root)
        if name in names(root):
            raise InputError(f"{name!r} is the name of a data set.", "Choose another tag.")
        if known.get(name, version) != version and not move:
            raise InputError(f"the tag {name!r} stands on {known[name]}.", "Use --move, or another tag.")
        _replace(root / TAGS, known | {name: version})


def check_name(name: str) -> None:
    if not NAME.fullmatch(name) or re.fullmatch(r"[0-9a-f]{4,16}", name):
        what = f"{name!r} cannot be a name."
        raise InputError(what, "Use a letter, then letters, digits, '.', '_' and '-'; nothing that looks like an id.")


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One change of names at a time; another process waits. The lock goes with the process, however it ends."""
    import fcntl

    try:
        (root / NAMES).mkdir(parents=True, exist_ok=True)
        file = (root / NAMES / ".lock").open("w")
    except OSError as error:
        what = f"{root} cannot be written ({error.strerror or error})."
        raise InputError(what, "Check its permissions, or choose another --root.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _numbers(root: Path, head: Dataset | None, examples: Sequence[Example], ids: Sequence[str]) -> list[int]:
    """The number of each row: that of the row it is in `head`, of an equal one that left earlier, or a new one."""
    if head is None:
        return list(range(1, len(examples) + 1))
    known = numbers_of(head)
    partners = match(Examples(head.texts), examples, ids=(head.ids, ids))
    numbers = [known[old] if old >= 0 else 0 for old in partners]
    taken = {*known}
    returning = {ids[index] for index, number in enumerate(numbers) if not number}
    gone = _gone(root, head, returning, taken) if returning else {}
    following = _next_row(head)
    for index, number in enumerate(numbers):
        if number:
            continue
        if gone.get(ids[index]):
            numbers[index] = gone[ids[index]].pop(0)
        else:
            numbers[index], following = following, following + 1
    return numbers


def _gone(root: Path, head: Dataset, contents: set[str], taken: set[int]) -> dict[str, list[int]]:
    """The numbers of rows with one of `contents` that left the data set, by content."""
    found: dict[str, list[int]] = {}
    seen = set(taken)
    for manifest in lineage(root, head.id):
        for row in read_left(root, manifest):
            if row.row is not None and row.row not in seen and row.example in contents:
                seen.add(row.row)
                found.setdefault(str(row.example), []).append(row.row)
    return found


def _next_row(head: Dataset | None) -> int:
    return int(head.operations[-1]["next_row"]) if head else 1


def _places(numbers: Sequence[int], lines: Sequence[int], ids: Sequence[str]) -> dict[int, tuple[int, str]]:
    return dict(zip(numbers, zip(lines, ids, strict=True), strict=True))


def _by_line(rows: Sequence[SourceRow], numbers: Sequence[int]) -> dict[int, int]:
    return {row.line: number for row, number in zip(rows, numbers, strict=True)}


def _numbered(
    ledger: Sequence[LedgerRow], numbers: Mapping[int, int], overrides: Mapping[int, LedgerRow]
) -> list[LedgerRow]:
    return [
        overrides.get(row.line) or (replace(row, row=numbers[row.line]) if row.line in numbers else row)
        for row in ledger
    ]


def _point(root: Path, name: str, version: str) -> None:
    _replace(root / NAMES / f"{name}.head", {"head": version})


def _replace(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write_synced(part, [json.dumps(value, indent=2)])
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        what = f"{path} cannot be written ({error.strerror or error})."
        raise InputError(what, "Check the directory's permissions and the free space.") from error
    finally:
        part.unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).", "Put it back, or remove it.") from error
