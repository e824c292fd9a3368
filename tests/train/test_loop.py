"""When the loop validates, and which weights it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import write_rows
from tunesmith.recipe import Recipe
from tunesmith.worker import Job

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Job]


def validations(job: Job) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in job.run.metrics() if row["kind"] == "validation"}


@pytest.mark.parametrize(
    ("asked", "steps"),
    [(1, [0, 7, 14]), (2, [0, 4, 7, 11, 14]), (3, [0, 3, 6, 7, 10, 13, 14]), (9, list(range(15)))],
)
def test_every_epoch_ends_with_a_validation_however_many_are_asked_for(
    asked: int, steps: list[int], small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    """54 rows in batches of 8 are 7 steps an epoch, which 2 and 3 do not divide."""
    job = train_here(small_recipe(batch_size=8, validations_per_epoch=asked), tmp_path / "run")
    assert list(validations(job)) == steps


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_its_patience_and_keeps_the_weights_of_the_best_validation(
    patience: int, small_recipe: MakeRecipe, train_here: Train, tiny_rows: Any, tmp_path: Path
) -> None:
    rows = tiny_rows(9)
    for row, label in zip(rows, ("login", "card", "refund") * 3, strict=True):
        row["messages"][-1]["content"] = label  # wrong ones: what is learned makes this loss worse
    held = write_rows(tmp_path / "held.jsonl", rows)
    changes = {"validation": str(held), "epochs": 30, "learning_rate": 0.03, "validations_per_epoch": 4}
    job = train_here(small_recipe(patience=patience, **changes), tmp_path / "run")
    losses = validations(job)
    best = min(losses, key=lambda step: losses[step])
    assert len([step for step in losses if step > best]) == patience
    assert max(losses) < job.plan.settings.num_steps
    kept = load_file(job.run.checkpoints_dir / f"step-{best:06d}" / "adapter.safetensors")
    saved = load_file(job.run.adapter_dir / "adapter_model.safetensors")
    assert {name.replace(".default.", ".") for name in kept} == set(saved)
    assert all(torch.equal(tensor, saved[name.replace(".default.", ".")]) for name, tensor in kept.items())
