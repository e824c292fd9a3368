"""`tunesmith ship`: an alias points at an adapter once the gate lets it through; every decision is kept.

Not here: the gate (evaluate.gate), whether it is met (evaluate.evidence), aliases (store). Listed in cli.main.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.evaluate.evidence import Check, Subject

REFUSED_EXIT = 3


def ship(
    adapter: Annotated[str, typer.Argument(help="adapter:DIR, a run or adapter folder, or another alias.")],
    *,
    alias: Annotated[str, typer.Option("--as", help="The alias that is to point at it, such as support@prod.")],
    gate: Annotated[Path, typer.Option(help="What is asked of it, YAML (docs/ship.md).")],
    evidence: Annotated[
        list[Path] | None,
        typer.Option(
            help="A report.json, regress.json, check.json or blind.json, or a folder of them. Repeat it; the adapter's "
            "own folder if unset."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at an adapter if its measurements pass the gate (exit code 3 and reasons if not)."""
    from dataclasses import asdict

    from tunesmith.adapter import find_tuned
    from tunesmith.evaluate.evidence import find_evidence, weigh
    from tunesmith.evaluate.gate import read_gate
    from tunesmith.store import check_alias, find_folder, record_decision

    output = Output(as_json=as_json)
    check_alias(alias)
    demands = read_gate(gate)
    given = find_folder(adapter.removeprefix("adapter:"))
    tuned = find_tuned(given)
    folder = tuned.adapter or Path(tuned.base)
    subject = _subject(adapter, given=given, folder=folder)
    found = find_evidence(evidence or [given])
    checks = weigh(demands, subject, evidence=found)
    _show(output, checks)
    passed = all(check.passed for check in checks)
    action = "shipped" if passed else "refused"
    document: dict[str, Any] = {
        "alias": alias,
        "action": action,
        "adapter": {**asdict(subject), "folder": str(folder.resolve())},
        "checks": [asdict(check) for check in checks],
        "reasons": [f"{check.name}: {check.sentence}" for check in checks if not check.passed],
        "evidence": {kind: {"path": str(one.path), "sha256": one.sha256} for kind, one in found.items()},
    }
    kept = keep_decision(document, copies={"gate.yaml": gate, **{kind: one.path for kind, one in found.items()}})
    version = record_decision(alias, action, folder=folder, sha256=subject.sha256, evidence=kept)
    if passed:
        output.say(f"{alias} is now version {version}: {folder}", "bold green")
    else:
        output.say(f"{alias} does not move: {len(document['reasons'])} of {len(checks)} checks failed.", "bold red")
    output.say(f"The decision and its evidence: {kept}")
    output.result({**document, "version": version, "decision": str(kept)})
    if not passed:
        raise typer.Exit(REFUSED_EXIT)


def keep_decision(document: Mapping[str, Any], *, copies: Mapping[str, Path]) -> Path:
    """A new folder under `decisions` in the home folder, whole or not at all: decision.json and copies of files."""
    from tunesmith.folders import home
    from tunesmith.runs import now

    created = now()
    name = f"{created[:19].replace(':', '').replace('-', '')}-{document['alias']}-{secrets.token_hex(3)}"
    folder = home() / "decisions" / name
    staged = folder.with_name(f".{name}.staged")
    staged.mkdir(parents=True)
    try:
        for file, path in copies.items():
            shutil.copyfile(path, staged / file)
        text = json.dumps({"created": created, **document}, ensure_ascii=False, indent=2)
        (staged / "decision.json").write_text(text + "\n", encoding="utf-8")
        staged.replace(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def _subject(line: str, *, given: Path, folder: Path) -> Subject:
    """What is known of the adapter: for a run, when it was proved and what it was trained on."""
    from datetime import UTC, datetime

    from tunesmith.data.dataset import read_manifest
    from tunesmith.errors import InputError
    from tunesmith.evaluate.evidence import Subject
    from tunesmith.facts import weights_sha256
    from tunesmith.folders import home
    from tunesmith.runs import Run, is_run

    spec = line if line.startswith("adapter:") else f"adapter:{line}"
    sha256 = weights_sha256(folder)
    # An alias points at the adapter inside its run.
    run = next((Run(place) for place in (given, folder.resolve().parent) if is_run(place)), None)
    if run is None:
        newest = max(file.stat().st_mtime for file in folder.glob("*.safetensors"))
        return Subject(spec, sha256, datetime.fromtimestamp(int(newest), UTC).isoformat())
    facts = run.read_json("run.json")
    trained_on = facts.get("data_sha256")
    if trained_on is None:  # the run was made before runs kept it
        with contextlib.suppress(InputError):  # the version is gone; a gate that asks for it says so
            trained_on = str(read_manifest(home() / "datasets" / str(facts.get("dataset")))["source"]["sha256"])
    return Subject(spec, sha256, str(run.status["updated"]), trained_on)


def _show(output: Output, checks: Iterable[Check]) -> None:
    for check in checks:
        output.say(f"{'yes' if check.passed else ' no'}  {check.name}: {check.sentence}")
        if check.todo:
            output.say(f"     {check.todo}")
