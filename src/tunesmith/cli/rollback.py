"""`tunesmith rollback`: an alias points again at what it pointed at before, or its history.

Not here: aliases (store), what let a version through (cli.ship). Listed in cli.main.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output


def rollback(
    alias: Annotated[str, typer.Argument(help="The alias, such as support@prod.")],
    *,
    to: Annotated[int | None, typer.Option(help="This version; the one before if unset.", min=1)] = None,
    because: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    history: Annotated[bool, typer.Option("--history", help="Only show what was decided, newest first.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at an earlier version again; nothing is loaded or measured."""
    from pathlib import Path

    from tunesmith.cli.ship import keep_decision
    from tunesmith.errors import InputError
    from tunesmith.store import check_alias, check_shipped, list_decisions, record_decision

    output = Output(as_json=as_json)
    check_alias(alias)
    decisions = list_decisions(alias)
    versions = {row["version"]: row for row in decisions if row["version"] is not None}
    if history:
        _show(output, decisions)
        output.result({"alias": alias, "decisions": decisions})
        return
    if not versions:
        raise InputError(f"{alias} points at nothing.", "`tunesmith models` lists the aliases.")
    current = versions[max(versions)]
    target = _target(versions, to)
    folder = check_shipped(target)  # before anything moves
    document = {"alias": alias, "action": "rolled back", "because": because}
    document |= {"from_version": current["version"], "to_version": target["version"], "folder": str(folder)}
    kept = keep_decision(document, copies={})
    version = record_decision(
        alias,
        "rolled back",
        folder=folder,
        sha256=target["sha256"],
        evidence=Path(kept),
        restores=target["version"],
        after=current["version"],
    )
    output.say(f"{alias} is now version {version}, which is version {target['version']} again: {folder}", "bold")
    output.result({**document, "version": version, "decision": str(kept)})


def _target(versions: Mapping[int, dict[str, Any]], to: int | None) -> dict[str, Any]:
    """The version asked for, or what the alias pointed at before the present one was shipped; a version that was a
    rollback means the one it restored."""
    from tunesmith.errors import InputError

    newest = max(versions)
    alias, meant = versions[newest]["alias"], _meant(versions[newest])
    if to is None and meant == 1:
        raise InputError(f"{alias} is at version 1, its first: there is none before.", "Ship another one.")
    chosen = _meant(versions[meant - 1]) if to is None else to
    if chosen not in versions:
        raise InputError(f"{alias} has no version {chosen}.", f"It has versions 1 to {newest}.")
    chosen = _meant(versions[chosen])
    if chosen == meant:
        raise InputError(f"{alias} is at version {meant} already.", "--history shows what there is.")
    return versions[chosen]


def _meant(row: Mapping[str, Any]) -> int:
    return int(row["restores"] or row["version"])


def _show(output: Output, decisions: list[dict[str, Any]]) -> None:
    rows = []
    for row in decisions:
        action = f"{row['action']} to {row['restores']}" if row["restores"] else row["action"]
        rows.append((row["version"] or "-", action, row["created"], row["sha256"][:12], row["folder"]))
    output.table(("version", "", "when", "weights", "folder"), rows)
