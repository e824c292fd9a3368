"""Order, batches and micro-batches: a function of the seed alone, every row once an epoch, nothing cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.conftest import write_rows
from tunesmith.chat import Example, Message, parse_row
from tunesmith.data.load import load_examples
from tunesmith.model import Base, attach_lora
from tunesmith.recipe import Recipe
from tunesmith.render import Rendered
from tunesmith.train.loop import mean_nll
from tunesmith.train.preflight import check_layout
from tunesmith.train.rows import Row, batches, label_weight, micro_batches, render_rows
from tunesmith.trie import label_nll_N, lay_out


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(i, Rendered((5,) * n, (False,) + (True,) * (n - 1)), 1.0) for i, n in enumerate(lengths)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=40), st.integers(0, 3), st.integers(0, 3), st.integers(1, 9))
def test_an_epoch_holds_every_row_once_in_an_order_of_seed_and_epoch(
    lengths: list[int], seed: int, epoch: int, size: int
) -> None:
    rows = rows_of(lengths)
    made = batches(rows, seed=seed, epoch=epoch, batch_size=size)
    assert made == batches(rows, seed=seed, epoch=epoch, batch_size=size)
    assert sorted(row.index for batch in made for row in batch) == list(range(len(rows)))
    assert all(len(batch) == size for batch in made[:-1])


def test_another_epoch_or_seed_gives_another_order() -> None:
    rows = rows_of([3] * 30)
    orders = {
        (s, e): [r.index for r in batches(rows, seed=s, epoch=e, batch_size=30)[0]] for s in (0, 1) for e in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_micro_batches_keep_the_order_and_the_limit(lengths: list[int], limit: int) -> None:
    rows = rows_of(lengths)
    pieces = list(micro_batches(rows, limit))
    assert [row for piece in pieces for row in piece] == rows
    assert all(len(piece) == 1 or sum(row.num_tokens for row in piece) <= limit for piece in pieces)


def test_a_row_that_does_not_fit_is_dropped_whole_with_its_length(tiny: Base, tiny_rows: Any) -> None:
    examples = [example for row in tiny_rows(3) if (example := parse_row(row)[0])]
    examples.insert(1, Example((Message("user", "x" * 300), Message("assistant", "y", trained=True))))
    rows, drops = render_rows(examples, tiny.renderer, max_length=250)
    assert [row.index for row in rows] == [0, 2, 3]
    ((index, reason),) = [(drop.index, drop.reason) for drop in drops]
    length = len(tiny.renderer.render(examples[1]).ids)
    assert (index, reason) == (1, f"{length} tokens do not fit the longest row of 250")


def test_micro_batches_of_any_size_give_the_same_loss_and_gradients(tiny: Base, tiny_file: Path) -> None:
    examples = [row.example for row in load_examples(tiny_file).examples][:12]
    weighted = [Example(e.messages, weight) for e, weight in zip(examples, (1.0, 2.0, 0.5) * 4, strict=True)]
    rows, _ = render_rows(weighted, tiny.renderer, max_length=512)
    torch.manual_seed(0)
    model = attach_lora(tiny, rank=4, alpha=8.0, dropout=0.0, targets="all-linear")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    measured = []
    for limit in (64, 400, 1000, 100_000):
        model.zero_grad(set_to_none=True)
        total = 0.0
        for piece in micro_batches(rows, limit):
            trie = lay_out([row.rendered for row in piece], [row.weight for row in piece])
            loss = (label_nll_N(model, trie) * trie.weights_N).sum() / label_weight(rows)
            loss.backward()
            total += loss.item()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        measured.append((total, gradient))
        assert mean_nll(model, rows, micro_batch_tokens=limit, share=True) == pytest.approx(total, rel=1e-6)
    for total, gradient in measured[1:]:
        assert total == pytest.approx(measured[0][0], rel=1e-6)
        assert (gradient - measured[0][1]).norm() <= 1e-6 * measured[0][1].norm() + 1e-7
    model.zero_grad(set_to_none=True)
    share, words = check_layout(model, rows)
    assert share
    assert "gives the plain result" in words
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_ledger_of_a_run_adds_up_to_the_lines_of_its_file(
    small_recipe: Callable[..., Recipe], tiny_rows: Any, tmp_path: Path
) -> None:
    from tunesmith.worker import prepare

    rows = tiny_rows(40)
    rows[7]["messages"][1]["content"] = "long " * 120
    path = write_rows(tmp_path / "mixed.jsonl", rows)
    path.write_text(path.read_text().replace("\n", "\n\n", 2))  # two blank lines
    job = prepare(small_recipe(data=str(path)), tmp_path / "run", say=lambda text: None)
    statuses = [row.status for row in job.ledger]
    assert [row.line for row in job.ledger] == list(range(1, 43))
    assert statuses.count("trained") == len(job.plan.rows)
    assert statuses.count("held_out") == len(job.plan.validation)
    dropped = {row.line: row.reason for row in job.ledger if row.status == "dropped"}
    assert dropped[2] == dropped[4] == "blank line"
    assert "tokens do not fit the longest row of 512" in dropped[10]
    assert len(dropped) == 3
    lines = (job.run.directory / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 42
