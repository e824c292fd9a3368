"""`tunesmith models`: the bases in the model cache, and the adapters and models that runs have proved.

Not here: looking into files (facts, runs). Listed in cli.main.
"""

from __future__ import annotations

from typing import Any

from tunesmith.cli.output import JsonFlag, Output


def models(as_json: JsonFlag = False) -> None:
    """List base models, adapters and trained models on this machine."""
    from pathlib import Path

    from tunesmith.facts import read_facts
    from tunesmith.recipe import EMBEDDED_BASE
    from tunesmith.runs import Run, is_run
    from tunesmith.store import home, list_runs

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
    output.table(
        ("model", "kind", "on", "where"),
        [
            (model["name"], model["kind"], model.get("base", "-"), model["path"] or "fetched on first use")
            for model in found
        ],
    )
    output.result({"models": found})
