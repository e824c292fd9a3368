"""`tunesmith train`: a LoRA adapter from a data file or a recipe, proved in a fresh process.

Not here: the work (worker, train). Listed in cli.main; `show_training` is also the demo's display.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.model import Base
    from tunesmith.recipe import Recipe
    from tunesmith.worker import Job

INTERRUPTED_EXIT = 130  # by Ctrl-C; by SIGTERM it is 75, which schedulers read as "try again"
TERMINATED_EXIT = 75


def train(
    source: Annotated[Path, typer.Argument(metavar="FILE|RECIPE", help="A JSONL data file, or a YAML recipe.")],
    *,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder, Hugging Face name, or the embedded default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; under TUNESMITH_HOME if unset.")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="A file to watch the loss on, instead of rows split off.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same adapter, to the bit, on a CPU.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the recipe.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train an adapter. Started again after an interruption, the same command goes on where it stopped."""
    output = Output(as_json=as_json)
    given = {"base": base, "validation": str(validation) if validation else None, "epochs": epochs, "seed": seed}
    recipe = build_recipe(
        source, {key: value for key, value in given.items() if value is not None}, assignments=set_ or []
    )
    job, metrics = show_training(output, recipe, out=out)
    output.say(f"Run {job.run.directory}. Try it: tunesmith chat {job.run.directory}", "green")
    output.result(
        {"run": str(job.run.directory), "id": job.run.id, "metrics": metrics, "proof": job.run.status["proof"]}
    )


def build_recipe(source: Path, given: dict[str, Any], *, assignments: list[str]) -> Recipe:
    """The recipe in a YAML file, or one for a data file, with the command's own values over it."""
    import yaml

    from tunesmith.errors import InputError
    from tunesmith.recipe import load_recipe, recipe_from

    values: dict[str, Any] = {"data": str(source)}
    if source.suffix in (".yaml", ".yml"):
        values = load_recipe(source).model_dump()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment!r} has no '='.", "Write --set KEY=VALUE.")
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"The value of --set {assignment!r} is not readable YAML.", "Quote it.") from error
    return recipe_from(values | given, source="the command" if given else str(source))


def show_training(
    output: Output, recipe: Recipe, *, out: Path | None, base: Base | None = None
) -> tuple[Job, dict[str, Any]]:
    """Prepare, say what will happen and why, train with a progress bar. Exits 130 or 75 when told to stop."""
    from tunesmith.train.loop import Interrupted
    from tunesmith.worker import execute, prepare

    job = prepare(recipe, out, say=output.say, base=base)
    _say_plan(output, job)
    try:
        with output.progress(
            "loss {task.fields[loss]}", "{task.fields[rate]} tokens/s", "{task.fields[watched]}"
        ) as bar:
            task = bar.add_task("training", total=job.plan.settings.num_steps, loss="-", rate="-", watched="")
            metrics = execute(job, watch=_watch(bar, task), say=output.say)
    except Interrupted as stop:
        import signal

        output.say(
            f"Stopped; the checkpoint is saved. The same command goes on from there ({job.run.directory}).", "yellow"
        )
        by_terminal = signal.SIGINT in stop.args
        raise typer.Exit(INTERRUPTED_EXIT if by_terminal else TERMINATED_EXIT) from stop
    _say_result(output, job, metrics)
    return job, metrics


def _watch(bar: Any, task: Any) -> Callable[[dict[str, Any]], None]:
    def watch(metric: dict[str, Any]) -> None:
        if metric["kind"] == "train":
            rate = f"{metric['tokens_per_s']:.0f}"
            bar.update(task, completed=metric["step"], loss=f"{metric['loss']:.3f}", rate=rate)
        else:
            bar.update(task, completed=metric["step"], watched=f"validation loss {metric['loss']:.3f}")

    return watch


def _say_plan(output: Output, job: Job) -> None:
    plan, facts = job.plan, job.base.facts
    output.say(
        f"{'Going on with' if job.resumed else 'Training'} {job.base.name} "
        f"({facts.num_parameters / 1e6:.0f} M parameters) "
        f"on {len(plan.rows):,} rows, watching {len(plan.validation):,} others. Run: {job.run.directory}"
    )
    dropped = [*plan.drops, *plan.validation_drops]
    if dropped:
        output.say(
            f"{len(dropped)} rows are dropped, the first because: {dropped[0].reason} (all in ledger.jsonl)", "yellow"
        )
    output.table(
        ("setting", "value", "because"), [(choice.name, choice.value, choice.reason) for choice in plan.choices]
    )


def _say_result(output: Output, job: Job, metrics: dict[str, Any]) -> None:
    output.say(
        f"Validation loss {metrics['validation_loss']:.4f} at step {metrics['best_step']} of {metrics['steps']}, "
        f"{metrics['seconds']:.0f} s; {metrics['tokens_trained']:,} tokens trained."
    )
    for check in job.run.status["proof"]:
        output.say(f"  proved: {check['check']} ({check['result']})")
