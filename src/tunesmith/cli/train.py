"""`tunesmith train`: an adapter or a model from a data file or a recipe, proved in a fresh process; or a sweep of them.

Not here: the work (worker, train). Listed in cli.main; `show_training` is also the demo's display.
"""

from __future__ import annotations

import json
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
    """Train an adapter, or all weights. The same command again goes on where it stopped.

    A recipe with a key `sweep` trains every combination of its lists: sweep: {rank: [8, 16], seed: [0, 1]}.
    """
    output = Output(as_json=as_json)
    given = {"base": base, "validation": str(validation) if validation else None, "epochs": epochs, "seed": seed}
    recipe = build_recipe(
        source, {key: value for key, value in given.items() if value is not None}, assignments=set_ or []
    )
    if isinstance(recipe, dict):
        _train_sweep(output, recipe, out=out)
        return
    job, metrics = show_training(output, recipe, out=out)
    output.say(f"Run {job.run.directory}. Try it: tunesmith chat {job.run.directory}", "green")
    output.result(
        {"run": str(job.run.directory), "id": job.run.id, "metrics": metrics, "proof": job.run.status["proof"]}
    )


def build_recipe(source: Path, given: dict[str, Any], *, assignments: list[str]) -> Recipe | dict[str, Recipe]:
    """The recipe in a YAML file, or one for a data file, with the command's own values over it; those of a sweep by
    their names."""
    import yaml

    from tunesmith.errors import InputError
    from tunesmith.recipe import read_recipe, recipe_from, sweep_recipes

    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment!r} has no '='.", "Write --set KEY=VALUE.")
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"The value of --set {assignment!r} is not readable YAML.", "Quote it.") from error
    values: dict[str, Any] = {"data": str(source)}
    if source.suffix in (".yaml", ".yml"):
        values = read_recipe(source)
        if "sweep" in values:
            return sweep_recipes(values, given=given, source=str(source))
        values = recipe_from(values, source=str(source)).model_dump()
    return recipe_from(values | given, source="the command" if given else str(source))


def _train_sweep(output: Output, recipes: dict[str, Recipe], *, out: Path | None) -> None:
    """Train them all, each with the display of a single run, and compare their losses. Exits 1 when one failed."""
    from tunesmith.errors import InputError
    from tunesmith.worker import sweep

    if out is None:
        raise InputError("A sweep needs --out.", "Each combination gets a folder in it.")

    def train_one(name: str, recipe: Recipe, base: Base) -> None:
        output.heading(name)
        show_training(output, recipe, out=out / name, base=base)

    outcomes = sweep(recipes, out, train_one=train_one, say=output.say)
    output.heading(f"{len(outcomes)} runs in {out}, best first")
    rows = []
    for outcome in outcomes:
        metrics = {} if outcome.error else outcome.run.status["metrics"]
        rows.append(
            {"name": outcome.name, "run": str(outcome.run.directory), "error": outcome.error}
            | {key: metrics.get(key) for key in ("validation_loss", "best_step", "steps", "seconds")}
        )
    _show_sweep(output, rows)
    watched = {one.run.read_json("run.json")["validation_dataset"] for one in outcomes if not one.error}
    if len(watched) > 1:
        output.say("Their validation rows are not the same, so the losses do not compare.", "yellow")
    output.result({"out": str(out), "runs": rows, "comparable": len(watched) == 1})
    failed = [one.name for one in outcomes if one.error]
    if failed:
        output.say(f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}.", "red")
        raise typer.Exit(1)


def _show_sweep(output: Output, rows: list[dict[str, Any]]) -> None:
    output.table(
        ("run", "validation loss", "at step", "seconds"),
        [
            (row["name"], f"failed: {row['error']}", "", "")
            if row["error"]
            else (row["name"], f"{row['validation_loss']:.4f}", row["best_step"], f"{row['seconds']:.0f}")
            for row in rows
        ],
    )


def show_training(
    output: Output, recipe: Recipe, *, out: Path | None, base: Base | None = None
) -> tuple[Job, dict[str, Any]]:
    """Prepare, say what will happen and why, train with a progress bar. Exits 130 or 75 when told to stop."""
    from tunesmith.train.loop import Interrupted
    from tunesmith.worker import execute, prepare

    job = prepare(recipe, out, say=output.say, base=base)
    _say_plan(output, job)
    try:
        with output.progress("loss {task.fields[loss]}", "{task.fields[cost]}", "{task.fields[watched]}") as bar:
            task = bar.add_task("training", total=job.plan.settings.num_steps, loss="-", cost="", watched="")
            metrics = execute(job, watch=_watch(output, bar, task), say=output.say)
    except Interrupted as stop:
        import signal

        output.say(
            f"Stopped; the checkpoint is saved. The same command goes on from there ({job.run.directory}).", "yellow"
        )
        by_terminal = signal.SIGINT in stop.args
        raise typer.Exit(INTERRUPTED_EXIT if by_terminal else TERMINATED_EXIT) from stop
    _say_result(output, job, metrics)
    return job, metrics


def _watch(output: Output, bar: Any, task: Any) -> Callable[[dict[str, Any]], None]:
    """Moves the bar; with --json every metric line goes to stderr as well, as it happens."""

    def watch(metric: dict[str, Any]) -> None:
        if output.as_json:
            output.say(json.dumps(metric))
        if metric["kind"] == "train":
            cost = f"{metric['tokens_per_s']:,.0f} tokens/s, {metric['memory_bytes'] / 2**30:.1f} GiB"
            bar.update(task, completed=metric["step"], loss=f"{metric['loss']:.3f}", cost=cost)
        else:
            watched = f"validation loss {metric['loss']:.3f}"
            if "pair_accuracy" in metric:
                watched += f", pairs {metric['pair_accuracy']:.0%}"
            bar.update(task, completed=metric["step"], watched=watched)

    return watch


def _say_plan(output: Output, job: Job) -> None:
    from tunesmith.train.rows import drops_in_words

    plan, facts = job.plan, job.base.facts
    noun = "pairs" if plan.settings.method == "dpo" else "rows"
    output.say(
        f"{'Going on with' if job.resumed else 'Training'} {job.base.name} "
        f"({facts.num_parameters / 1e6:.0f} M parameters) "
        f"on {len(plan.rows):,} {noun}, watching {len(plan.validation):,} others. Run: {job.run.directory}"
    )
    dropped = [*plan.drops, *plan.validation_drops]
    if dropped:
        num_rows = len(dropped) + len(plan.rows) + len(plan.validation)
        words = f"{drops_in_words(dropped, num_rows)} (the first: {dropped[0].reason}; all in ledger.jsonl)."
        output.say(words, "yellow")
    for warning in plan.warnings:
        output.say(f"Look at this before going on: {warning}", "bold red")
    output.table(
        ("setting", "value", "because"), [(choice.name, choice.value, choice.reason) for choice in plan.choices]
    )


def _say_result(output: Output, job: Job, metrics: dict[str, Any]) -> None:
    output.say(
        f"Validation loss {metrics['validation_loss']:.4f} at step {metrics['best_step']} of {metrics['steps']}, "
        f"{metrics['seconds']:.0f} s; {metrics['tokens_trained']:,} tokens trained."
    )
    if "validation_margin" in metrics:
        pairs = {name.removeprefix("validation_"): value for name, value in metrics.items()}
        output.say(
            f"Validation pairs: margin {pairs['margin']:+.3f}, above 0 in {pairs['pair_accuracy']:.0%}; the preferred "
            f"answer is the likelier one in {pairs['ranking_accuracy']:.0%} (base: "
            f"{pairs['ranking_accuracy_before']:.0%}). "
            f"Nats gained: preferred {pairs['chosen_change']:+.2f}, rejected {pairs['rejected_change']:+.2f}."
        )
    for check in job.run.status["proof"]:
        output.say(f"  proved: {check['check']} ({check['result']})")
    for warning in job.run.status.get("warnings", ()):
        output.say(f"Look at this before using it: {warning}", "bold red")
