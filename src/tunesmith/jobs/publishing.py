"""What a finished run becomes: a model name, its checkpoints as adapters that can be asked, the result file.

Not here: the transaction that makes them known (serve.records.queue.finish). Everything is written whole before that;
doing it again, as after a kill, gives the same.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
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

KEPT_CHECKPOINTS = 3
ADAPTER_FILE = "adapter_model.safetensors"


def result_of(job: Job, run: Run) -> Result:
    """Write what is to be published, and describe it. Raises RunError when a checkpoint is not what it should be."""
    name, metrics, now = model_name(job), step_metrics(run), int(time.time())
    made = [_made(job, name, run.adapter_dir)]
    checkpoints = []
    for step, source in _kept(run):
        folder = JobFolder.of(job).path / "checkpoints" / f"step-{step}"
        _write_adapter(source, folder, like=run.adapter_dir)
        made.append(_made(job, f"{name}:ckpt-step-{step}", folder, step=step))
        ckpt_id = f"ftckpt_{job.id.removeprefix('ftjob-')}_{step}"
        checkpoints.append(Checkpoint(ckpt_id, job.id, now, step, made[-1].name, metrics[step]))
    return Result(made, checkpoints, metrics_csv(metrics.values()))


def model_name(job: Job) -> str:
    """ft:{base}:{org}:{suffix}:{id8}, without a slash: clients differ in how they send one in a path."""
    parts = (Path(job.model).name, job.owner, job.suffix or "", job.id.removeprefix("ftjob-")[:8])
    return ":".join(("ft", *(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)))


def _made(job: Job, name: str, folder: Path, *, step: int | None = None) -> Made:
    sha256 = weights_sha256(folder)
    return Made(name, job.owner, int(time.time()), job.model, folder, sha256, job=job.id, step=step)


def _kept(run: Run) -> list[tuple[int, Path]]:
    """The newest checkpoints after a step that are left: the last and those the trainer kept. One with the figures of
    its step only, and none of before training."""
    steps = {int(path.name[5:]): path for path in run.checkpoints_dir.glob("step-*") if path.name[5:].isdigit()}
    known = step_metrics(run)
    return [(step, steps[step]) for step in sorted(steps) if step in known][-KEPT_CHECKPOINTS:]


def _write_adapter(source: Path, folder: Path, *, like: Path) -> None:
    """A checkpoint in the form of the finished adapter `like`, beside whose weights it was trained: the same files,
    and the tensors under PEFT's names. Raises RunError where they do not correspond."""
    tensors = {_as_saved(name): value for name, value in load_file(source / "adapter.safetensors").items()}
    wanted = safetensors_header(like / ADAPTER_FILE)
    if {name: list(value.shape) for name, value in tensors.items()} != _shapes(wanted):
        raise RunError(f"The checkpoint {source} does not correspond to the adapter {like}.")
    staged = folder.with_name(f".{folder.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(like, staged)
    save_file(tensors, staged / ADAPTER_FILE, metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    staged.replace(folder)


def _as_saved(name: str) -> str:
    """PEFT's file leaves out the name of the adapter on the model."""
    return name.replace(".default.", ".")


def _shapes(header: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    return {name: entry["shape"] for name, entry in header.items()}
