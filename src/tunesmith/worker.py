"""One training process: from a recipe and its data file to a finished run; joins the ledgers of data and train.

Not here: the terminal (cli) or the queue (jobs). The same recipe and data again go on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith import runs, store
from tunesmith.data.dataset import Dataset, split_dataset, write_loaded
from tunesmith.data.ledger import LedgerRow, check_conservation
from tunesmith.data.load import load_examples
from tunesmith.data.versions.decisions import refuse_pending
from tunesmith.errors import InputError, TunesmithError
from tunesmith.folders import alone, home
from tunesmith.model import Base, load_base
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.train.loop import Interrupted, Watch
from tunesmith.train.rows import Drop
from tunesmith.train.run import Plan, plan, train
from tunesmith.train.trackers import tracking

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """Everything ready to train: the run directory, the base in memory, the datasets and the plan."""

    run: Run
    base: Base
    recipe: Recipe
    training: Dataset
    validation: Dataset
    plan: Plan
    ledger: tuple[LedgerRow, ...]
    resumed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of a sweep ended: `error` is None when it finished."""

    name: str
    run: Run
    error: str | None

    @property
    def validation_loss(self) -> float:
        return float("inf") if self.error else float(self.run.status["metrics"]["validation_loss"])


def prepare(recipe: Recipe, out: Path | None, *, say: Say, base: Base | None = None) -> Job:
    """Read and split the data, load the base, plan, and make (or find again) the run directory.

    All of the user's mistakes show here, before anything is written to `out`.
    """
    training, validation = _datasets(recipe, say=say)
    fingerprint = _fingerprint(recipe, training, validation)
    found = _unfinished(out, fingerprint)
    base = base or load_base_for(recipe, say=say)
    lines = [row.line for row in training.rows]
    planned = plan(base, recipe, examples=training.examples, validation=validation.examples, lines=lines)
    ledger = _join_ledger(training, validation, planned, own_validation=recipe.validation is None)
    check_conservation(ledger, training.source.lines)
    facts = {"fingerprint": fingerprint, "dataset": training.id, "validation_dataset": validation.id}
    facts["data_sha256"] = training.source.sha256
    run = found or runs.create_run(out, recipe=recipe.model_dump(), facts=facts)
    run.write_lines("ledger.jsonl", (row.as_dict() for row in ledger))
    run.write_lines("validation.jsonl", (json.loads(example.to_json()) for example in validation.examples))
    return Job(run, base, recipe, training, validation, planned, tuple(ledger), found is not None)


def load_base_for(recipe: Recipe, *, say: Say) -> Base:
    """The base as the recipe's method trains on it: in float32 where its weights are trained, in 4 bits for QLoRA."""
    precision = "float32" if recipe.method == "full" else recipe.precision
    return load_base(recipe.base, precision=precision, quantize=recipe.method == "qlora", say=say)


def execute(job: Job, *, watch: Watch, say: Say) -> dict[str, Any]:
    """Train the job. Ctrl-C and SIGTERM save a checkpoint after the step in progress, then raise Interrupted."""
    with (
        _locked(job.run),
        _stop_on_signals() as stop_asked,
        tracking(job.run, job.recipe.trackers, watch=watch, say=say) as tracked,
    ):
        return train(job.run, job.base, plan=job.plan, watch=tracked, say=say, stop_asked=stop_asked)


def sweep(
    recipes: Mapping[str, Recipe], out: Path, *, train_one: Callable[[str, Recipe, Base], object], say: Say
) -> list[Outcome]:
    """Train each recipe with `train_one` into the folder of its name in `out`; the outcomes, best loss first.

    Every mistake of the user shows before the first step. A run that fails does not stop the others; one that is
    finished is not trained again.
    """
    shared = _SharedBase(say)
    left = []
    for name, recipe in recipes.items():
        training, validation = _datasets(recipe, say=lambda text: None)
        fingerprint = _fingerprint(recipe, training, validation)
        if not _is_finished(out / name, fingerprint):
            _unfinished(out / name, fingerprint)
            plan(shared.base(recipe), recipe, examples=training.examples, validation=validation.examples)
            left.append(name)
    outcomes = []
    for name, recipe in recipes.items():
        error = None
        if name in left:
            try:
                train_one(name, recipe, shared.base(recipe))
            except TunesmithError as failure:
                error = str(failure)
        outcomes.append(Outcome(name, Run(out / name), error))
    return sorted(outcomes, key=lambda outcome: outcome.validation_loss)


class _SharedBase:
    """The base in memory, loaded once for all recipes of a sweep that agree on it."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.held: Base | None = None
        self.wanted: object = None

    def base(self, recipe: Recipe) -> Base:
        wanted = (recipe.base, recipe.precision, recipe.method == "full", recipe.method == "qlora")
        if self.held and self.held.trained_in_place:
            self.say("The base is loaded again: the full fine-tuning before trained it in place.")
        elif self.held and wanted == self.wanted:
            return self.held
        self.held = None  # before the next one takes its place in memory
        self.held, self.wanted = load_base_for(recipe, say=self.say), wanted
        return self.held


def _datasets(recipe: Recipe, *, say: Say) -> tuple[Dataset, Dataset]:
    """The training and the validation rows. Raises DataError with every problem of a file."""
    folder = home() / "datasets"
    loaded = load_examples(Path(recipe.data))
    for note in loaded.notes:
        say(str(note))
    refuse_pending(loaded.examples, loaded.path)
    whole = write_loaded(folder, loaded)
    if recipe.validation:
        validation = load_examples(Path(recipe.validation))
        refuse_pending(validation.examples, validation.path)
        return whole, write_loaded(folder, validation)
    return split_dataset(folder, whole, fraction=recipe.validation_fraction, seed=recipe.seed)


def _fingerprint(recipe: Recipe, training: Dataset, validation: Dataset) -> str:
    return hashlib.sha256(json.dumps([recipe.model_dump(), training.id, validation.id]).encode()).hexdigest()


def _is_finished(out: Path, fingerprint: str) -> bool:
    """Whether `out` holds a finished run of this very recipe and data."""
    if not runs.is_run(out):
        return False
    run = Run(out)
    return run.status["state"] == "finished" and run.read_json("run.json").get("fingerprint") == fingerprint


def _unfinished(out: Path | None, fingerprint: str) -> Run | None:
    """The run to go on with: at `out`, or the newest on the list that was cut off with this very recipe and data."""
    if out is not None:
        if not runs.is_run(out):
            return None
        run = Run(out)
        state = run.status["state"]
        if state == "finished":
            raise InputError(f"{out} holds a finished run.", "Choose another --out, or remove it to train again.")
        if run.read_json("run.json").get("fingerprint") != fingerprint:
            raise InputError(f"{out} holds a run of another recipe or other data.", "Choose another --out.")
        return run
    for row in store.list_runs():
        run = Run(Path(row["directory"]))
        if not runs.is_run(run.directory):
            continue
        same = run.read_json("run.json").get("fingerprint") == fingerprint
        if same and run.status["state"] in ("running", "interrupted", "proving") and not _is_locked(run):
            return run
    return None


def _join_ledger(training: Dataset, validation: Dataset, planned: Plan, *, own_validation: bool) -> list[LedgerRow]:
    """The training file's ledger, with the rows that rendering dropped."""
    dropped = _reasons(training, planned.drops)
    if own_validation:
        dropped |= _reasons(validation, planned.validation_drops)
    return [
        replace(row, status="dropped", reason=dropped[row.line]) if row.line in dropped else row
        for row in training.ledger
    ]


def _reasons(dataset: Dataset, drops: Sequence[Drop]) -> dict[int, str]:
    return {dataset.rows[drop.index].line: drop.reason for drop in drops}


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question the loop asks; a second SIGINT interrupts at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    except Interrupted as stop:
        stop.args = (asked[0],)
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _locked(run: Run) -> AbstractContextManager[None]:
    """Only one process trains a run."""
    taken = InputError(f"Another process is training {run.directory}.", "Wait for it, or choose another --out.")
    return alone(run.directory / "lock", otherwise=taken)


def _is_locked(run: Run) -> bool:
    try:
        with _locked(run):
            return False
    except InputError:
        return True
