"""`tunesmith review`: look through rows one by one with the keyboard; accept, reject, edit, go on another day.

Not here: the screen (cli.review_screen), what decisions mean (data.versions.review). Listed in cli.main.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.data import RootOption, store_root
from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.data.versions.review import Review


def review(
    target: Annotated[str, typer.Argument(help="A data file, or the name of a data set (`tunesmith data log`).")],
    *,
    write: Annotated[bool, typer.Option("--write", help="Write from the decisions so far.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where a file's rows go; FILE.reviewed.jsonl if unset.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that file even if something else wrote it.")] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="For the log of a data set.")] = "",
    root: RootOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Look through rows: accept, reject with a note, edit. Every decision is kept at once; close and go on any time."""
    from tunesmith.data.versions.review import may_replace, open_review, output_path

    output = Output(as_json=as_json)
    folder = store_root(root)
    opened = open_review(target, folder)
    if opened.is_file:
        out = out or output_path(opened.path)
        may_replace(opened, out, force=force)
    if not write and sys.stdin.isatty() and sys.stdout.isatty():
        from tunesmith.cli.review_screen import ReviewScreen

        write = bool(ReviewScreen(opened).run())
    document = _say_progress(output, opened)
    if write:
        document |= _write_file(output, opened, out, force) if out else _write_version(output, opened, folder, message)
    else:
        output.say(f"Decisions are kept in {opened.log.path}.")
        output.say("`tunesmith review` in a terminal goes on where you stopped; --write writes the result.")
    output.result(document)


def _say_progress(output: Output, opened: Review) -> dict[str, Any]:
    counts = opened.counts()
    words = ", ".join(f"{counts[key]:,} {key}" for key in ("accepted", "rejected", "open", "pending") if counts[key])
    output.say(f"{opened.title}: {len(opened.items):,} rows: {words}.")
    return {"target": opened.title, "rows": len(opened.items), "states": dict(counts), "log": str(opened.log.path)}


def _write_file(output: Output, opened: Review, out: Path, force: bool) -> dict[str, Any]:
    from tunesmith.data.versions.review import write_file

    made = write_file(opened, out, force=force)
    output.say(f"wrote {made.path}: {made.counts.get('trained', 0):,} rows.", "green")
    words = ", ".join(f"{count:,} {status}" for status, count in made.counts.items())
    output.say(f"{made.ledger_path} says where each line of {opened.path.name} went: {words}.")
    if pending := opened.counts()["pending"]:
        output.say(f"{pending:,} generated rows still wait for a decision and were left out.")
    return {"path": str(made.path), "ledger": str(made.ledger_path), "counts": dict(made.counts)}


def _write_version(output: Output, opened: Review, folder: Path, message: str) -> dict[str, Any]:
    from tunesmith.data.versions.review import write_version

    made = write_version(folder, opened.title, message=message)
    if made.is_new:
        words = f"{made.counts['removed']:,} rows rejected, {made.counts['edited']:,} edited or approved"
        output.say(f"{opened.title} is now {made.dataset.id}: {len(made.dataset.texts):,} rows ({words}).", "green")
    else:
        output.say(f"No decision changes a row: {opened.title} stays at {made.dataset.id}.")
    return {"version": made.dataset.id, "new": made.is_new, "counts": dict(made.counts)}
