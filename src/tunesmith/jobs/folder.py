"""The folder of a job under the home folder: its data files, recipe, run directory, and its worker's log and lock.

Not here: what is in a run directory (runs). Names are the job's random id, never a user's text.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tunesmith.folders import home
from tunesmith.runs import Run, is_run
from tunesmith.serve.records.jobs import Job


@dataclass(frozen=True, slots=True)
class JobFolder:
    path: Path

    @classmethod
    def of(cls, job: Job) -> JobFolder:
        return cls(home() / "jobs" / job.id)

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def run_dir(self) -> Path:
        return self.path / "run"

    @property
    def run(self) -> Run | None:
        """The run directory, once the trainer has made it."""
        return Run(self.run_dir) if is_run(self.run_dir) else None

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def lock(self) -> Path:
        """Held by the worker process for as long as it lives; holds its process id."""
        return self.path / "worker.lock"

    def data(self, kind: str) -> Path:
        return self.path / f"{kind}.jsonl"

    def take(self, file: Path, kind: str) -> Path:
        """Have the bytes of an uploaded file here under another name, so that the job outlives its deletion."""
        self.path.mkdir(parents=True, exist_ok=True)
        staged, final = self.path / f".{kind}.staged", self.data(kind)
        staged.unlink(missing_ok=True)
        try:
            os.link(file, staged)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, staged)
        staged.replace(final)
        return final

    def step(self) -> int:
        """The newest checkpoint's step, 0 where there is none."""
        names = (path.name for path in (self.run_dir / "checkpoints").glob("step-*"))
        return max((int(name[5:]) for name in names if name[5:].isdigit()), default=0)
