"""From an accepted job to a recipe: its files are read whole, and every "auto" becomes a number that is shown.

Not here: rendering and what the trainer checks (worker), states (jobs.dispatcher). What is wrong with a file is told
with the number of its example, counted from 1 without blank lines, as OpenAI does; all of it, not the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith import hardware
from tunesmith.data.load import SourceRow, read
from tunesmith.data.split import part_size
from tunesmith.errors import MAX_SHOWN, Problem, TunesmithError
from tunesmith.facts import ModelFacts
from tunesmith.jobs.folder import JobFolder
from tunesmith.jobs.publishing import KEPT_EPOCHS
from tunesmith.recipe import Recipe, recipe_from, recipe_yaml
from tunesmith.serve.records.files import find_file
from tunesmith.serve.records.jobs import Job
from tunesmith.serve.wire.hyperparameters import EXTRAS, recipe_keys
from tunesmith.train import trackers
from tunesmith.train.settings import settle

MIN_EXAMPLES = 10  # OpenAI's
TRAINS_ON = {"supervised": "chat", "dpo": "preference"}  # the kind of rows each method takes
FORMATS = {"chat": "fine-tune-chat", "preference": "fine-tune-preference"}  # OpenAI's names


class InvalidJobError(Exception):
    """The job cannot be trained as it is: the text is for its owner; `code` and `param` as on the wire."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class TrainableBase:
    """A base that the server holds: the name or folder to load it by, its facts, and the precision it answers in."""

    target: str
    facts: ModelFacts
    precision: str


def validate(job: Job, base: TrainableBase) -> dict[str, Any]:
    """Take the job's files, write its recipe, and return the hyperparameters with numbers in place of "auto".

    Raises InvalidJobError. Doing it again, as after a crash, gives the same.
    """
    folder = JobFolder.of(job)
    num_rows = _checked(job, folder, "training_file", job.training_file)
    values: dict[str, Any] = {"data": str(folder.data("training")), "base": base.target, "seed": job.seed}
    if job.validation_file:
        _checked(job, folder, "validation_file", job.validation_file)
        values["validation"] = str(folder.data("validation"))
    values |= {"precision": base.precision, "kept_epochs": KEPT_EPOCHS, **recipe_keys(job.asked)}
    if job.method == "dpo":
        values["method"] = "dpo"
    if job.integrations:
        values["trackers"] = ["wandb"]
    try:
        recipe = recipe_from(values, source="The hyperparameters")
        trackers.require(recipe.trackers)
        if not recipe.validation:
            num_rows -= part_size(num_rows, fraction=recipe.validation_fraction)
        at_once = recipe.model_copy(update={"threads": 1})  # the trainer looks for idle cores itself, when it begins
        settings, _ = settle(at_once, num_rows=num_rows, facts=base.facts, hardware=hardware.detect())
    except TunesmithError as error:
        raise InvalidJobError(str(error), code="invalid_hyperparameters", param="hyperparameters") from error
    multiplier = job.asked.get("learning_rate_multiplier", "auto")
    factor = 1.0 if multiplier == "auto" else multiplier
    settled = settings.as_dict()
    pinned = {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate * factor,
        "rank": settings.rank,
        "alpha": settings.alpha,
    }  # threads and micro-batches the trainer settles when it begins, and keeps
    folder.recipe.write_text(recipe_yaml(values | pinned, heading=f"Fine-tuning job {job.id}"), encoding="utf-8")
    return _resolved(job, recipe, settled | pinned, factor)


def _resolved(job: Job, recipe: Recipe, settled: Mapping[str, Any], multiplier: float) -> dict[str, Any]:
    """OpenAI's three, and those of ours that were asked for."""
    shown = {"n_epochs": settled["epochs"], "batch_size": settled["batch_size"], "learning_rate_multiplier": multiplier}
    if job.method == "dpo":
        shown["beta"] = recipe.beta
    if job.asked.get("learning_rate", "auto") != "auto":
        del shown["learning_rate_multiplier"]
    for name in job.asked:
        if name in EXTRAS:
            key = EXTRAS[name]
            shown[name] = settled[key] if key in settled and key != "threads" else getattr(recipe, key)
    return shown


def _checked(job: Job, folder: JobFolder, param: str, file_id: str) -> int:
    """How many examples a file has, once it is known to be good. Raises InvalidJobError."""
    file = find_file(file_id, owner=job.owner)
    kind = param.removesuffix("_file")
    noun = f"{kind} file"
    code = f"invalid_{param}"
    if file is None or not file.path.is_file():
        raise InvalidJobError(f"The {noun} {file_id} is no longer there. Upload it again.", code=code, param=param)
    reading = read(folder.take(file.path, kind))  # row by row: a file may be larger than memory
    count, kinds = 0, set[str]()
    problems: list[Problem] = []
    for found in reading:
        if isinstance(found, SourceRow):
            count += 1
            kinds.add(found.example.kind)
        elif len(problems) < MAX_SHOWN:
            problems.append(found)
    if problems:
        text = _told(problems, reading.counts.total(), blank_lines=reading.noted["blank_line"])
        raise InvalidJobError(f"The job failed due to an invalid {noun} {text}", code=code, param=param)
    if unfit := kinds - {TRAINS_ON[job.method]}:
        raise InvalidJobError(_wrong_format(job, file_id, kinds=unfit), code=code, param=param)
    if kind == "training" and count < MIN_EXAMPLES:
        what = f"Training file has {count} example(s), but must have at least {MIN_EXAMPLES} examples"
        raise InvalidJobError(what, code="invalid_n_examples", param=param)
    return count


def _wrong_format(job: Job, file_id: str, *, kinds: set[str]) -> str:
    """In OpenAI's words where it has words for it: rows of one method given to a job of the other."""
    wanted = {"supervised": "'messages' that end with an answer", "dpo": "'input', 'preferred_output' and "
              "'non_preferred_output' in every row"}[job.method]  # fmt: skip
    if len(kinds) == 1 and (found := FORMATS.get(kind := next(iter(kinds)))):
        method = next(name for name, trained in TRAINS_ON.items() if trained == kind)
        what = f"Input file {file_id} is in the {found} format, but the job is not using '{method}' as its method "
        return f"{what}(provided method={job.method}). Set the method to '{method}', or give it {wanted}."
    words = f"Input file {file_id} holds rows of the kind {', '.join(sorted(kinds))}, which the method {job.method} "
    return f"{words}does not train on. It needs {wanted}."


def _told(problems: Sequence[Problem], total: int, *, blank_lines: Sequence[int]) -> str:
    """The first problems of a file, in the order of its examples, and how many there are."""
    told = [f"{_place(problem, blank_lines)}{problem.what} {problem.todo}".rstrip() for problem in problems]
    if total > len(told):
        told.append(f"... and {total - len(told)} more")
    counted = "1 problem" if total == 1 else f"{total} problems"
    return f"({counted}). Invalid file format. " + "\n".join(told)


def _place(problem: Problem, blank_lines: Sequence[int]) -> str:
    if not problem.line:
        return ""
    example = problem.line - sum(line < problem.line for line in blank_lines)
    column = f", column {problem.column}" if problem.column else ""
    return f"Example {example} (line {problem.line}{column}): "
