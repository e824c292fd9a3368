"""What a step cost: the useful operations are the ones that run, the figures add up, each example has its own loss."""

from __future__ import annotations

import json
import mmap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.train.conftest import STEPS, losses
from tunesmith.adapter import attach_lora, unfreeze
from tunesmith.model import Base
from tunesmith.recipe import Recipe
from tunesmith.train.loop import mean_loss
from tunesmith.train.meter import memory, peak_flops_per_s, useful_flops
from tunesmith.train.objective import Likelihood
from tunesmith.worker import Job

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Job]
CPU = torch.device("cpu")
TOKENS = 10


def counted_flops(model: Any) -> int:
    """Of the matrix products of linear layers that torch really runs, forward and backward; every token is a label."""
    ids_BT = torch.arange(TOKENS)[None]
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        if loss.requires_grad:
            loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if "mm" in str(operation) and "bmm" not in str(operation))


def lora(base: Base, targets: Any) -> Any:
    return attach_lora(base, rank=4, alpha=8.0, dropout=0.0, targets=targets)


@pytest.mark.parametrize(
    ("prepare", "first_block"),
    [
        (lambda base: base.model, 0),
        (unfreeze, 0),
        # Counted, but not run: the gradients of the first block's inputs to k_proj, v_proj and their lora_A.
        (lambda base: lora(base, "all-linear"), 2 * 2 * (16 * 32 + 4 * 32)),
        (lambda base: lora(base, ["layers.1.mlp.down_proj"]), 0),
    ],
    ids=["frozen", "full", "adapter", "adapter on the last layer"],
)
def test_useful_operations_are_those_that_torch_runs(
    tiny: Base, prepare: Callable[[Base], Any], first_block: int
) -> None:
    model = prepare(tiny)
    per_token, per_label = useful_flops(model)
    assert TOKENS * (per_token + per_label - first_block) == counted_flops(model)


def test_full_fine_tuning_takes_six_operations_a_weight(tiny: Base) -> None:
    body = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 64 * 3)
    head = 259 * 32
    assert useful_flops(tiny.model) == (2 * body, 2 * head)
    assert useful_flops(unfreeze(tiny)) == (6 * body, 6 * head)


def test_the_peak_is_measured_without_touching_the_random_numbers() -> None:
    peak_flops_per_s.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    peak = peak_flops_per_s(torch.float32, CPU, threads=torch.get_num_threads())
    assert torch.equal(torch.rand(3), expected)
    assert peak > 1e8
    assert peak_flops_per_s(torch.float32, CPU, threads=torch.get_num_threads()) == peak  # not measured again


def test_the_memory_peak_remembers_what_was_given_back() -> None:
    before = memory(CPU)
    with mmap.mmap(-1, 2**27) as held:  # not from malloc, which may keep what is freed
        held.write(bytes([1]) * 2**27)
        during = memory(CPU)
    after = memory(CPU)
    assert min(during["memory_bytes"], after["memory_peak_bytes"]) - before["memory_bytes"] > 2**26
    assert during["memory_bytes"] - after["memory_bytes"] > 2**26


@pytest.fixture
def job(small_recipe: MakeRecipe, train_here: Train, tmp_path: Path) -> Job:
    return train_here(small_recipe(loss_by_example=True), tmp_path / "run")


def test_the_figures_of_the_steps_add_up_to_those_of_the_run(job: Job) -> None:
    steps = [row for row in job.run.metrics() if row["kind"] == "train"]
    total = {name: sum(step[name] for step in steps) for name in steps[0] if name not in ("kind", "rows")}
    assert total["tokens"] == 2 * sum(row.num_tokens for row in job.plan.rows)
    assert total["tokens_trained"] == 2 * sum(row.rendered.num_trained for row in job.plan.rows)
    assert total["tokens_computed"] < total["tokens"]  # they share their prompt
    metrics = job.run.status["metrics"]
    assert [metrics[name] for name in ("tokens_trained", "tokens_computed")] == [
        total[name] for name in ("tokens_trained", "tokens_computed")
    ]
    assert metrics["step_seconds"] == pytest.approx(total["seconds"])
    for step in steps:
        assert step["tokens_per_s"] == pytest.approx(step["tokens"] / step["seconds"])
        assert 0 < step["mfu"] < 1
        assert step["cpu_seconds"] > 0
        assert 0 < step["memory_bytes"] <= step["memory_peak_bytes"]


def test_the_accuracy_is_the_share_of_labels_that_a_plain_forward_puts_first(job: Job, tiny: Base) -> None:
    right = labels = 0
    for row in job.plan.validation:
        ids, trained = row.rendered.ids, row.rendered.trained
        best = tiny.model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        places = [place for place, is_trained in enumerate(trained) if is_trained]
        right += sum(best[place - 1] == ids[place] for place in places)
        labels += len(places)
    rows = job.run.metrics()
    assert rows[0]["kind"] == "validation" and rows[0]["token_accuracy"] == pytest.approx(right / labels)
    assert all(0 <= row["token_accuracy"] <= 1 for row in rows)
    assert json.loads((job.run.form_dir / "adapter_config.json").read_text())["r"] == job.run.recipe["rank"]


def test_every_example_has_its_loss_under_its_line_of_the_file(job: Job, tiny: Base) -> None:
    lines = [json.loads(line) for line in (job.run.directory / "example_losses.jsonl").read_text().splitlines()]
    by_step = defaultdict(list)
    for line in lines:
        by_step[line["step"]].append(line)
    assert sorted(by_step) == list(range(1, STEPS + 1))
    for loss, step in zip(losses(job.run), by_step.values(), strict=True):
        labels = sum(line["labels"] for line in step)
        assert sum(line["loss"] * line["labels"] for line in step) / labels == pytest.approx(loss, rel=1e-5)

    trained = [row.line for row in job.ledger if row.status == "trained"]
    assert sorted(line["row"] for line in lines) == sorted(trained * 2)  # two epochs

    of_line = {row.line: row for row in job.plan.rows}
    for line in by_step[1]:  # the adapter changes nothing yet
        cut: Any = {"micro_batch_tokens": 1024, "share": True}
        alone = mean_loss(tiny.model, [of_line[line["row"]]], objective=Likelihood(), **cut)
        assert line["loss"] == pytest.approx(alone.loss, rel=1e-4)


def test_the_losses_of_examples_are_only_written_when_asked_for(
    small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    train_here(small_recipe(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "example_losses.jsonl").exists()
