"""A process that only works on jobs, with the stub trainer, until it is killed: `-m tests.job_host STEPS STEP_S`.

For tests that kill it; the real one is `tunesmith server`, whose other half answers requests.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tunesmith.facts import ModelFacts
from tunesmith.jobs.dispatcher import Dispatcher, Setup
from tunesmith.jobs.folder import JobFolder
from tunesmith.jobs.validation import TrainableBase

FACTS = ModelFacts(Path("tiny"), "llama", 32, 2, 259, 512, 1000, 4000)
BASES = {"tiny": TrainableBase("tiny", FACTS, "float32")}


def stub_command(steps: int, step_s: float, mishap: str = "none") -> Callable[[JobFolder], list[str]]:
    def command(folder: JobFolder) -> list[str]:
        trainer = str(Path(__file__).with_name("stub_trainer.py"))
        paths = [str(folder.recipe), "--out", str(folder.run_dir), "--json"]
        return [sys.executable, "-S", "-E", trainer, *paths, str(steps), str(step_s), mishap]

    return command


def stub_setup(steps: int, step_s: float, mishap: str = "none", max_crashes: int = 3) -> Setup:
    command = stub_command(steps, step_s, mishap)
    return Setup(BASES, lambda job, run: None, poll_s=0.02, command=command, max_crashes=max_crashes)


if __name__ == "__main__":
    Dispatcher(stub_setup(int(sys.argv[1]), float(sys.argv[2]), max_crashes=1000)).start()
    signal.pause()
