"""What a run becomes: checkpoints of its epochs as adapters that can be asked, then a model name and the result file.

Not here: the transactions that make them known (serve.records.queue). Everything is written whole before that; doing it
again, as after a kill, gives the same. Called by jobs.training.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from safetensors.numpy import load_file, save_file

from tunesmith.errors import RunError
from tunesmith.facts import safetensors_header, weights_sha256
from tunesmith.jobs.folder import JobFolder
from tunesmith.jobs.watch import metrics_csv, step_metrics
from tunesmith.runs import Run
from tunesmith.serve.records.events import Checkpoint
from tunesmith.serve.records.jobs import Job
from tunesmith.serve.records.models import Made
from tunesmith.serve.records.queue import Result

KEPT_EPOCHS = 3  # as many as OpenAI shows
ADAPTER_FILE = "adapter_model.safetensors"


def result_of(job: Job, run: Run) -> Result:
    """Describe what is to be published. Raises RunError when a checkpoint that was is not like the adapter."""
    wanted = _shapes(run.adapter_dir)
    for folder in (JobFolder.of(job).path / "checkpoints").glob("step-*"):
        if _shapes(folder) != wanted:
            raise RunError(f"The checkpoint {folder} does not correspond to the adapter {run.adapter_dir}.")
    return Result(_made(job, model_name(job), run.adapter_dir), metrics_csv(step_metrics(run).values()))


def epoch_ends(run: Run, *, after: int) -> list[int]:
    """The last epochs' ends later than a step, whose checkpoints are there and validated; oldest first. None of a run
    whose training an earlier version ended: it has no form."""
    if not run.form_dir.is_dir():
        return []
    steps = (int(path.name[5:]) for path in run.checkpoints_dir.glob("step-*") if path.name[5:].isdigit())
    settings = run.read_json("settings.json")
    per_epoch = settings["num_steps"] // settings["epochs"]
    ends = sorted(step for step in steps if step > after and step % per_epoch == 0)
    metrics = step_metrics(run) if ends else {}  # nearly never: they grow
    return [step for step in ends if metrics.get(step, {}).get("full_valid_loss") is not None][-KEPT_EPOCHS:]


def checkpoint_of(job: Job, run: Run, *, step: int) -> tuple[Made, Checkpoint]:
    """Write the adapter of a checkpoint, and describe both. Raises OSError when the checkpoint goes away meanwhile."""
    folder = JobFolder.of(job).path / "checkpoints" / f"step-{step}"
    _write_adapter(run.checkpoints_dir / f"step-{step:06d}", folder, form=run.form_dir)
    made = _made(job, f"{model_name(job)}:ckpt-step-{step}", folder, step=step)
    ckpt_id = f"ftckpt_{job.id.removeprefix('ftjob-')}_{step}"
    return made, Checkpoint(ckpt_id, job.id, made.created, step, made.name, step_metrics(run)[step])


def model_name(job: Job) -> str:
    """ft:{base}:{org}:{suffix}:{id8}, without a slash: clients differ in how they send one in a path."""
    parts = (Path(job.model).name, job.owner, job.suffix or "", job.id.removeprefix("ftjob-")[:8])
    return ":".join(("ft", *(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)))


def _made(job: Job, name: str, folder: Path, *, step: int | None = None) -> Made:
    sha256 = weights_sha256(folder)
    return Made(name, job.owner, int(time.time()), job.model, folder, sha256, job=job.id, step=step)


def _write_adapter(source: Path, folder: Path, *, form: Path) -> None:
    """A checkpoint as an adapter: the files of `form`, and the tensors under PEFT's names."""
    tensors = {_as_saved(name): value for name, value in load_file(source / "adapter.safetensors").items()}
    staged = folder.with_name(f".{folder.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(form, staged)
    save_file(tensors, staged / ADAPTER_FILE, metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    staged.replace(folder)


def _as_saved(name: str) -> str:
    """PEFT's file leaves out the name of the adapter on the model."""
    return name.replace(".default.", ".")


def _shapes(folder: Path) -> dict[str, object]:
    return {name: entry["shape"] for name, entry in safetensors_header(folder / ADAPTER_FILE).items()}
