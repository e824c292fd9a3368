"""`tunesmith models`: the bases in the model cache, and the adapters and models that runs have proved.

Not here: looking into files (facts, runs). Listed in cli.main.
"""

from __future__ import annotations

from typing import Any

from tunesmith.cli.output import JsonFlag, Output


def models(as_json: JsonFlag = False) -> None:
    """List base models, adapters, trained models and aliases on this machine."""
    from pathlib import Path

    from tunesmith.facts import read_facts
    from tunesmith.folders import home
    from tunesmith.recipe import EMBEDDED_BASE
    from tunesmith.runs import Run, is_run
    from tunesmith.store import list_aliases, list_runs

    output = Output(as_json=as_json)
    found: list[dict[str, Any]] = []
    for config in sorted((home() / "models").glob("[!.]*/config.json")):
        facts = read_facts(config.parent)
        found.append(
            {"name": config.parent.name, "kind": "base", "parameters": facts.num_parameters, "path": str(config.parent)}
        )
    if not any(model["name"] == EMBEDDED_BASE for model in found):
        found.insert(0, {"name": EMBEDDED_BASE, "kind": "base", "parameters": None, "path": None})
    for row in list_runs():
        run = Run(Path(row["directory"]))
        if is_run(run.directory) and run.status["state"] == "finished":
            folder = run.weights_dir
            found.append({"name": row["id"], "kind": folder.name, "base": row["base"], "path": str(folder)})
    for alias in list_aliases():
        version = alias["version"]
        found.append({"name": alias["alias"], "kind": "alias", "version": version, "path": alias["folder"]})
    output.table(
        ("model", "kind", "on", "where"),
        [(model["name"], model["kind"], _stands_on(model), model["path"] or "fetched on first use") for model in found],
    )
    output.result({"models": found})


def _stands_on(model: dict[str, Any]) -> str:
    return f"version {model['version']}" if model["kind"] == "alias" else str(model.get("base", "-"))
