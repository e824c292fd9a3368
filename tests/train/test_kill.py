"""kill -9 at any moment: the same command finishes the run, without a hand, at the same bits.

Children are forked from one process, so that torch is imported once; SIGKILL leaves them no last words all the same.
Some kills come after a random time, some at a random file event: between two writes, in a save, while publishing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.alone import run_alone
from tests.train.conftest import adapter_bytes, losses, make_recipe, prove_here, train, write_rows
from tunesmith.recipe import Recipe
from tunesmith.runs import Run

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@dataclass
class Killer:
    """Runs lives of a training and ends them. `hits`: what the runs were at when a kill met a living process."""

    recipe: Recipe
    moments: random.Random
    life_s: float = 0.0
    num_events: int = 0
    hits: Counter[str] = field(default_factory=Counter)

    def measure(self, folder: Path) -> Run:
        """Two undisturbed lives: one here, so that its children find everything imported, and one that is measured."""
        train(self.recipe, folder / "undisturbed")
        counted, write = os.pipe()
        start = time.monotonic()
        assert self.live(folder / "measured", at_event=10**9, report=write)
        self.life_s = time.monotonic() - start
        self.num_events = int(os.read(counted, 20))
        return Run(folder / "undisturbed")

    def live(self, out: Path, *, at_event: int = 0, after_s: float = 0.0, report: int | None = None) -> bool:
        """One life in a child, which a kill may end; whether it came to its end. Any other end fails the test."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                events = count_events(out, kill_at=at_event) if at_event else None
                train(self.recipe, out)
                if events and report:
                    os.write(report, str(len(events)).encode())
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        if after_s:
            time.sleep(after_s)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            self.hits[phase(out)] += 1
            return False
        assert os.WEXITSTATUS(status) == 0, "a life that nobody ended failed; its traceback is above"
        return True

    def run(self, out: Path, *, part: float) -> Run:
        """A run that is killed at a file event (`part` of the way through its life), then after random times, until it
        has lived through one."""
        done = self.live(out, at_event=max(1, int(part * self.num_events)))
        while not done and phase(out) != "finished":  # killed on its last breath
            done = self.live(out, after_s=self.moments.uniform(0, self.life_s))
        return Run(out)


def count_events(folder: Path, *, kill_at: int) -> list[None]:
    """Count this process's file events in `folder`, and let it die at the nth."""
    events: list[None] = []
    inside = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(inside):
            events.append(None)
            if len(events) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return events


def phase(out: Path) -> str:
    """What a run was at when it was killed, by what it left behind."""
    if not (out / "run.json").exists():
        return "starting"
    if list(out.glob("checkpoints/.*")):
        return "saving a checkpoint"
    if list(out.glob(".*-staged")):
        return "publishing"
    return str(Run(out).status["state"])


def assert_same(run: Run, undisturbed: Run) -> None:
    assert run.status["state"] == "finished"
    assert adapter_bytes(run) == adapter_bytes(undisturbed)
    for kind in ("train", "validation"):
        assert losses(run, kind) == losses(undisturbed, kind)
    rows = [[metric["rows"] for metric in r.metrics() if metric["kind"] == "train"] for r in (run, undisturbed)]
    assert rows[0] == rows[1]  # the very sequence of batches
    assert len(set(rows[0])) > 1
    names = [sorted(path.name for path in r.checkpoints_dir.iterdir()) for r in (run, undisturbed)]
    assert names[0] == names[1]  # nothing half-written, nothing taken for damaged


def kill(folder: str, base: str, *, times: int, seed: int) -> Counter[str]:
    """Kill runs `times` times and compare each that came to its end with the undisturbed one."""
    recipe = make_recipe(data=f"{folder}/data.jsonl", base=base, batch_size=8, dropout=0.1)
    killer = Killer(recipe, random.Random(seed))
    with pytest.MonkeyPatch.context() as patch:
        prove_here(patch)
        undisturbed = killer.measure(Path(folder))
        number = 0
        while killer.hits.total() < times:
            part = (number % 10 + killer.moments.random()) / 10  # every tenth of a life has its turn
            run = killer.run(Path(folder, str(number)), part=part)
            assert_same(run, undisturbed)
            number += 1
            assert number <= times, "too many lives ended before their kill"
    return killer.hits


@pytest.fixture
def folder(tmp_path: Path, tiny_rows: Any) -> Path:
    write_rows(tmp_path / "data.jsonl", tiny_rows(24))
    return tmp_path


def kill_twenty_times(folder: str, base: str) -> None:
    hits = kill(folder, base, times=20, seed=0)
    assert hits["running"] >= 3
    assert len(hits) >= 3, f"the kills came at few kinds of moments: {hits}"


def test_twenty_kills_at_random_moments_change_nothing(folder: Path, tiny_base: Path) -> None:
    run_alone(kill_twenty_times, folder, tiny_base)


def kill_two_hundred_times(folder: str, base: str) -> None:
    hits = kill(folder, base, times=200, seed=1)
    assert set(hits) >= {"saving a checkpoint", "running", "publishing", "proving"}


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(folder: Path, tiny_base: Path) -> None:
    run_alone(kill_two_hundred_times, folder, tiny_base, timeout_s=1200)


@pytest.mark.slow
def test_the_command_itself_is_killed_and_finishes(tiny_base: Path, tiny_file: Path, tmp_path: Path) -> None:
    """The real thing: fresh processes, the proof in a process of its own, kills until one life is long enough."""
    command = [sys.executable, "-c", "from tunesmith.cli.main import main; main()", "train", str(tiny_file)]
    command += ["--base", str(tiny_base), "--epochs", "2", "--set", "threads=1", "--set", "precision=float32"]
    command += ["--set", "dropout=0.1", "--set", "learning_rate=0.01", "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, capture_output=True)
    life_s = time.monotonic() - start
    moments = random.Random(2)
    killed = number = 0
    while killed < 12:
        out = tmp_path / str(number)
        number += 1
        for _ in range(3):
            child = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            time.sleep(moments.uniform(0.3, 1) * life_s)
            child.kill()
            child.communicate()
            killed += child.returncode == -signal.SIGKILL
        done = subprocess.run([*command, str(out)], capture_output=True)
        assert done.returncode == 0 or b"holds a finished run" in done.stderr, done.stderr  # by a kill at its very end
        assert_same(Run(out), Run(tmp_path / "undisturbed"))
        events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
        assert events[-1] == "finished"
