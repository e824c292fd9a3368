"""Trainings small enough for a test: the tiny base, a handful of steps, one thread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.model import Base, load_base
from tunesmith.recipe import Recipe, recipe_from
from tunesmith.runs import Run
from tunesmith.worker import Job, execute, prepare

STEPS = 8  # of `small_recipe` on `tiny_file`: 54 rows, batches of 16, 2 epochs


@pytest.fixture
def tiny(tiny_base: Path) -> Base:
    """The tiny base in memory, fresh: what one test does to it no other sees."""
    return load_base(str(tiny_base), precision="float32")


@pytest.fixture
def small_recipe(tiny_base: Path, tiny_file: Path) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        return make_recipe(**{"data": str(tiny_file), "base": str(tiny_base)} | changes)

    return make


def make_recipe(**values: Any) -> Recipe:
    """A recipe of few steps on one thread; `values` need data and base."""
    small = {"epochs": 2, "rank": 4, "threads": 1, "precision": "float32", "learning_rate": 0.01, "patience": None}
    return recipe_from(small | values, source="test")


@pytest.fixture
def proof_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the real proof in this process: a fresh one takes seconds to import torch. One test uses the fresh one."""
    prove_here(monkeypatch)


def prove_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.train import prove

    class Done:
        returncode = 0
        stderr = ""

    def run(command: list[str], **_: Any) -> Done:
        assert command[1:3] == ["-m", "tunesmith.train.prove"]
        prove.main(command[3])
        return Done()

    monkeypatch.setattr(prove.subprocess, "run", run)


@pytest.fixture
def train_here(proof_here: None) -> Callable[..., Job]:
    """Prepare and execute a recipe; the job when it is done."""
    return train


def train(recipe: Recipe, out: Path | None = None, watch: Callable[[Any], None] = lambda metric: None) -> Job:
    job = prepare(recipe, out, say=lambda text: None)
    execute(job, watch=watch, say=lambda text: None)
    return job


def adapter_bytes(run: Run) -> bytes:
    return (run.adapter_dir / "adapter_model.safetensors").read_bytes()


def losses(run: Run, kind: str = "train") -> list[float]:
    return [row["loss"] for row in run.metrics() if row["kind"] == kind]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
