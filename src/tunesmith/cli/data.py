"""`tunesmith data`: versions of a data set: add, log, diff, show, tag, export, and why a row is in it.

Not here: versions and names (data.versions.history), differences (data.versions.diff). Listed in cli.main.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.data.dataset import Dataset
    from tunesmith.data.versions.origin import Origin

data = typer.Typer(name="data", help="Keep data like code: versions, differences, and why each row is in it.")

RootOption = Annotated[Path | None, typer.Option(help="Folder of versions; `datasets` in the home folder if unset.")]
VersionArgument = Annotated[str, typer.Argument(help="A data set (its newest version), a tag, or a version id.")]


def store_root(root: Path | None) -> Path:
    """The folder of versions that a command works on."""
    from tunesmith.folders import home

    return root or home() / "datasets"


@data.command()
def add(
    file: Annotated[Path, typer.Argument(help="The data file that is to be the next version.")],
    *,
    name: Annotated[str | None, typer.Option(help="The data set; the file's name if unset.")] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="What changed, for the log.")] = "",
    as_is: Annotated[bool, typer.Option("--as-is", help="Take the rows without earlier decisions about them.")] = False,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a file the next version of a data set. Rows keep their numbers when they move or are edited."""
    from tunesmith.data.ledger import counts_of
    from tunesmith.data.load import load_examples
    from tunesmith.data.versions import history

    output = Output(as_json=as_json)
    folder, name = store_root(root), name or file.name.partition(".")[0]
    made = history.add(folder, load_examples(file), name=name, message=message, as_is=as_is)
    version, counts = made.dataset, made.counts
    if made.is_new:
        changed = _counted({key: counts[key] for key in ("added", "removed", "edited")})
        output.say(f"{name} is now {version.id}: {len(version.texts):,} rows ({changed}).")
    else:
        output.say(f"{name} holds these rows already: it stays at {version.id}.")
    kept = {"rejected": "rejected in review stay out", "reviewed": "edited or approved in review stay so"}
    for key, words in kept.items():
        if counts.get(key):
            output.say(f"{counts[key]:,} rows {words} (--as-is takes them as they are in the file).")
    ledger = counts_of(version.ledger)
    output.say(f"Of {version.source.lines:,} lines: {_counted(ledger)}.")
    output.result({"name": name, "version": version.id, "new": made.is_new, "counts": dict(counts), "ledger": ledger})


def _opened(folder: Path, version: str) -> Dataset:
    """The version that a name, tag or id stands for."""
    from tunesmith.data.dataset import read_dataset
    from tunesmith.data.versions.history import resolve

    return read_dataset(folder / resolve(folder, version))


@data.command()
def log(
    name: Annotated[str | None, typer.Argument(help="A data set, tag or version id; all data sets if unset.")] = None,
    *,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List the versions of a data set, newest first; without a name, the data sets."""
    from tunesmith.data.dataset import read_manifest
    from tunesmith.data.versions import history

    output = Output(as_json=as_json)
    folder = store_root(root)
    tags = history.tags(folder)
    if name is None:
        heads = {known: read_manifest(folder / version) for known, version in history.names(folder).items()}
        if not heads:
            output.say("No data sets yet. `tunesmith data add FILE` makes one.")
        for known, manifest in heads.items():
            output.say(f"{known}: {manifest['id']}, {manifest['rows']:,} rows, {manifest['created']}")
        output.result({"datasets": [{"name": known, **manifest} for known, manifest in heads.items()], "tags": tags})
        return
    versions = list(history.lineage(folder, history.resolve(folder, name)))
    rows = []
    for manifest in versions:
        step = manifest["operations"][-1] if manifest["operations"] else {}
        signs = {"+": "added", "-": "removed", "~": "edited"}
        changed = " ".join(f"{sign}{step.get(key, 0):,}" for sign, key in signs.items())
        on_it = [tag for tag, version in tags.items() if version == manifest["id"]]
        words = ", ".join([*on_it, *([step["message"]] if step.get("message") else [])])
        made = f"{step.get('operation', 'read')} {manifest['source']['name']}"
        rows.append((manifest["id"], manifest["created"], made, f"{manifest['rows']:,}", changed, words))
    output.table(("version", "made", "by", "rows", "changed", "tags, message"), rows)
    output.result({"versions": versions, "tags": tags})


@data.command()
def diff(
    before: VersionArgument,
    after: VersionArgument,
    *,
    limit: Annotated[int, typer.Option(min=0, help="Changes shown; all with 0.")] = 20,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show rows added, removed, edited and moved between two versions, side by side."""
    from tunesmith.cli.side_by_side import changes_table
    from tunesmith.data.versions.diff import KINDS
    from tunesmith.data.versions.diff import diff as compare

    output = Output(as_json=as_json)
    folder = store_root(root)
    versions = [_opened(folder, text) for text in (before, after)]
    changes = compare(versions[0], versions[1])
    counts = Counter(change.kind for change in changes)
    shown = [change for change in changes if change.kind != "moved"]
    cut = shown[: limit or None]
    if cut:
        colour = output.console.is_terminal and not output.console.no_color
        output.console.print(changes_table(cut, colour=colour), soft_wrap=False)
        output.say()
    if len(cut) < len(shown):
        output.say(f"... {len(shown) - len(cut):,} more changes; --limit 0 shows all, --json lists them.")
    sizes = [f"{version.id} ({len(version.texts):,} rows)" for version in versions]
    output.say(f"{sizes[0]} to {sizes[1]}: {_counted({kind: counts[kind] for kind in KINDS})}.")
    document: dict[str, Any] = {"before": versions[0].id, "after": versions[1].id}
    document["counts"] = {kind: counts[kind] for kind in KINDS}
    sides = ((change.kind, change.before, change.after) for change in changes)
    document["changes"] = [
        {"kind": kind, "before": old.as_dict() if old else None, "after": new.as_dict() if new else None}
        for kind, old, new in sides
    ]
    output.result(document)


@data.command()
def show(
    version: VersionArgument,
    *,
    line: Annotated[int | None, typer.Option(help="Show one row, by its line in the source file.")] = None,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a version holds and where it came from, or one of its rows."""
    from tunesmith.data.ledger import counts_of
    from tunesmith.data.versions.history import tags
    from tunesmith.errors import InputError

    output = Output(as_json=as_json)
    folder = store_root(root)
    dataset = _opened(folder, version)
    if line is not None:
        place = next((row for row in dataset.ledger if row.line == line), None)
        if place is None:
            what = f"{dataset.source.name} has no line {line} in version {dataset.id}."
            raise InputError(what, f"Give a line from 1 to {dataset.source.lines}.")
        example = next((row.example for row in dataset.rows if row.line == line), None)
        number = "" if place.row is None else f", row {place.row}"
        reason = f" ({place.reason})" if place.reason else ""
        output.say(f"line {line} of {dataset.source.name}{number}: {place.status}{reason}")
        if example:
            _say_example(output, example)
        output.result({"version": dataset.id, **place.as_dict(), "content": example.to_json() if example else None})
        return
    counts = counts_of(dataset.ledger)
    output.say(f"version {dataset.id}, made {dataset.created}, {len(dataset.texts):,} rows")
    output.say(f"from {dataset.source.name}, {dataset.source.lines:,} lines: {_counted(counts)}")
    output.say(f"parent: {dataset.parent or 'none'}")
    on_it = [tag for tag, known in tags(folder).items() if known == dataset.id]
    if on_it:
        output.say(f"tags: {', '.join(on_it)}")
    for step in dataset.operations:
        output.say("  " + ", ".join(f"{key} {value}" for key, value in step.items()))
    output.result(
        {
            "version": dataset.id, "created": dataset.created, "rows": len(dataset.texts), "ledger": counts,
            "parent": dataset.parent, "tags": on_it, "operations": [dict(step) for step in dataset.operations],
            "directory": str(dataset.directory),
        }
    )  # fmt: skip


@data.command()
def tag(
    version: VersionArgument,
    name: Annotated[str, typer.Argument(help="The tag, such as v1 or sent-to-legal.")],
    *,
    move: Annotated[bool, typer.Option("--move", help="Take the tag from the version it stands on.")] = False,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a version a name that stays on it."""
    from tunesmith.data.versions import history

    output = Output(as_json=as_json)
    folder = store_root(root)
    found = history.resolve(folder, version)
    history.tag(folder, found, name=name, move=move)
    output.say(f"{name} is version {found}.")
    output.result({"tag": name, "version": found})


@data.command()
def export(
    version: VersionArgument,
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    *,
    approved: Annotated[bool, typer.Option("--approved", help="Leave out generated rows nobody has approved.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the rows of a version to a JSONL file, to train on or to send to someone."""
    from tunesmith.data.dataset import Examples
    from tunesmith.data.files import write_new_files
    from tunesmith.data.versions.decisions import is_pending

    output = Output(as_json=as_json)
    folder = store_root(root)
    dataset = _opened(folder, version)
    examples, texts = Examples(dataset.texts), dataset.texts
    waiting = {at for at, text in enumerate(texts) if '"generated"' in text and is_pending(examples[at])}
    rows = [text for at, text in enumerate(texts) if not (approved and at in waiting)]
    write_new_files({out: rows}, force=force)
    output.say(f"wrote {out}: {len(rows):,} rows of version {dataset.id}.")
    if waiting:
        what = "were left out" if approved else "are in it, and training refuses them (--approved leaves them out)"
        output.say(f"{len(waiting):,} generated rows that nobody has approved {what}.")
    output.result({"path": str(out), "version": dataset.id, "rows": len(rows), "pending": len(waiting)})


@data.command()
def why(
    row: Annotated[str, typer.Argument(help="NAME#ROW, such as support#17; or NAME:LINE, TAG:LINE, ID:LINE.")],
    *,
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say where a row came from, what touched it, what was decided about it, and which runs trained on it."""
    from dataclasses import asdict

    from tunesmith.data.versions.origin import origin, parse_place

    output = Output(as_json=as_json)
    folder = store_root(root)
    name, number = parse_place(folder, row)
    found = origin(folder, name, row=number)
    _say_origin(output, found)
    body = asdict(found)
    for touch, shown in zip(found.touches, body["touches"], strict=True):
        shown["example"] = touch.example and touch.example.to_json()
    body["state"] = found.state.status if found.state else None
    output.result(body)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _say_origin(output: Output, found: Origin) -> None:
    from tunesmith.cli.side_by_side import compared

    last = next(touch for touch in reversed(found.touches) if touch.example)
    state = found.state.status if found.state else "not in the newest version"
    output.say(f"{found.name}#{found.row} ({state})", "bold")
    if last.example:
        _say_example(output, last.example)
    output.heading("Versions")
    before = None
    for touch in found.touches:
        place = touch.file if touch.line is None else f"{touch.file}, line {touch.line}"
        reason = f" ({touch.reason})" if touch.reason else ""
        output.say(f"  {touch.created}  {touch.version}  {touch.effect} by {touch.operation}: {place}{reason}")
        if before and touch.example:
            for label, old, new in compared(before, touch.example, colour=False):
                output.say(f"    {label}: {old} -> {new}")
        before = touch.example or before
    if found.decisions:
        output.heading("Decisions and notes")
    for said in found.decisions:
        output.say(f"  {said.time}  {said.who}: {said.action}{f': {said.note}' if said.note else ''}")
    output.heading("Runs")
    for use in found.uses:
        output.say(f"  {use.run} ({use.state}): {use.status}, line {use.line} of its file")
    if not found.uses:
        output.say("  no run on this machine had it in its data")


def _say_example(output: Output, example: Any) -> None:
    from tunesmith.cli.side_by_side import parts

    for label, text in parts(example).items():
        output.say(f"  {label}: {text}")
