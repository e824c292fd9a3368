"""tunesmith as `tunesmith train` runs it: a recipe is prepared and executed, and `watch` is where a step ends.

Not here: turns and clocks (meter). Run by benchmarks/train_speed.py. Of tunesmith's inside it knows the order of the
rows (`train.rows.batches`) and their tokens, which the peers are given, and the names in the metric of a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meter import Meter, read_job, versions

from tunesmith.recipe import recipe_from
from tunesmith.render import Rendered
from tunesmith.train.rows import batches
from tunesmith.train.settings import learning_rate_at
from tunesmith.worker import Job, execute, prepare

IGNORED = -100  # a label that does not train, for the peers


def main(job: dict[str, Any]) -> None:
    meter = Meter()
    recipe = recipe_from(job["recipe"], source="the benchmark")
    prepared = prepare(recipe, Path(job["scratch"]) / "run", say=lambda text: None)
    order = _order(prepared, steps=job["steps"] + 1)
    labels = [sum(label != IGNORED for row in batch for label in row["labels"][1:]) for batch in order]
    settings = prepared.plan.settings
    meter.ready(
        batches=order,
        rates=[learning_rate_at(step + 1, settings) for step in range(len(order))],
        settings={choice.name: choice.value for choice in prepared.plan.choices},
        versions=versions("tunesmith", "transformers", "peft", "torch"),
    )
    waited = False

    def watch(metric: dict[str, Any]) -> None:
        nonlocal waited
        if not waited:  # the validation before step 1
            waited = True
            meter.wait()
        if metric["kind"] == "train":
            meter.step(
                loss=metric["loss"],
                tokens=metric["tokens"],
                labels=labels[metric["step"] - 1],
                computed=metric["tokens_computed"],
            )

    execute(prepared, watch=watch, say=lambda text: None)


def _order(prepared: Job, *, steps: int) -> list[list[dict[str, Any]]]:
    """The rows of the first steps as the loop takes them, in the form the peers' trainers read."""
    settings = prepared.plan.settings
    order = batches(prepared.plan.rows, seed=settings.seed, epoch=0, batch_size=settings.batch_size)
    if len(order) < steps:
        raise SystemExit(f"{steps} steps need {steps * settings.batch_size} rows; there are {len(prepared.plan.rows)}.")
    return [[_as_peers_read(row.rendered) for row in batch] for batch in order[:steps]]


def _as_peers_read(rendered: Rendered) -> dict[str, Any]:
    pairs = zip(rendered.ids, rendered.trained, strict=True)
    return {"input_ids": list(rendered.ids), "labels": [token if trained else IGNORED for token, trained in pairs]}


if __name__ == "__main__":
    main(read_job())
