"""`tunesmith runs`: the trainings this machine knows, newest first.

Not here: what a run directory holds (runs). Listed in cli.main.
"""

from __future__ import annotations

from typing import Any

from tunesmith.cli.output import JsonFlag, Output


def runs(as_json: JsonFlag = False) -> None:
    """List runs with their state and validation loss."""
    from pathlib import Path

    from tunesmith.runs import Run, is_run
    from tunesmith.store import list_runs

    output = Output(as_json=as_json)
    found: list[dict[str, Any]] = []
    for row in list_runs():
        run = Run(Path(row["directory"]))
        if not is_run(run.directory):
            continue
        status = run.status
        found.append(row | {"state": status["state"], "reason": status.get("reason"), "metrics": status.get("metrics")})
    if not found:
        output.say("No runs yet. `tunesmith train FILE` makes one, `tunesmith demo` shows the whole way.")
    else:
        output.table(
            ("run", "state", "base", "validation loss", "where"),
            [(one["id"], one["state"], one["base"], _loss(one["metrics"]), one["directory"]) for one in found],
        )
    output.result({"runs": found})


def _loss(metrics: dict[str, Any] | None) -> str:
    return f"{metrics['validation_loss']:.4f}" if metrics else "-"
