"""Tokens at once by the memory there is: counted on the model, lowered when it is short, computed twice at the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tunesmith.adapter import attach_lora
from tunesmith.model import Base
from tunesmith.recipe import Recipe
from tunesmith.train import budget
from tunesmith.train.budget import activation_bytes, within_budget
from tunesmith.train.rows import Row
from tunesmith.worker import Job, prepare


@pytest.fixture
def job(small_recipe: Callable[..., Recipe]) -> Job:
    return prepare(small_recipe(), None, say=lambda text: None)


@pytest.fixture
def model(job: Job) -> Any:
    return adapted(job.base)


def adapted(base: Base) -> Any:
    return attach_lora(base, rank=4, alpha=8.0, dropout=0.0, targets="all-linear", method="lora")


def settled(model: Any, job: Job, monkeypatch: pytest.MonkeyPatch, *, free: float | None, tokens: int = 0) -> Any:
    """With memory for `free` tokens."""
    room = None if free is None else int((free * activation_bytes(model, job.plan.rows) + budget.STEP_BYTES) / 0.5) + 1
    monkeypatch.setattr(budget, "free_bytes", lambda: room)
    return within_budget(model, replace(job.plan.settings, micro_batch_tokens=tokens), rows=job.plan.rows)


def longest(rows: list[Row]) -> int:
    return max(row.num_tokens for row in rows)


def test_the_count_grows_with_what_is_kept_and_not_with_the_rows(model: Any, job: Job) -> None:
    rows = job.plan.rows
    config = job.base.model.config
    per_token = activation_bytes(model, rows)
    floats = config.num_hidden_layers * (6 * config.hidden_size + 3 * config.intermediate_size)
    assert 4 * floats <= per_token <= 4 * 4 * floats
    assert per_token == pytest.approx(activation_bytes(model, rows[::-1]), rel=0.3)


def test_with_room_a_processor_takes_what_pays(model: Any, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (10**6, None):
        settings, found = settled(model, job, monkeypatch, free=free)
        assert (settings.micro_batch_tokens, settings.recompute) == (budget.MOST_TOKENS["cpu"], False)
        assert "At most 2,048 tokens at once" in str(found)


def test_little_memory_lowers_the_tokens(model: Any, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    few = longest(job.plan.rows) + 50
    settings, _ = settled(model, job, monkeypatch, free=few)
    assert settings.micro_batch_tokens == pytest.approx(few, abs=2)
    assert not settings.recompute


def test_what_does_not_fit_is_computed_twice(model: Any, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, found = settled(model, job, monkeypatch, free=5)
    assert settings.micro_batch_tokens == longest(job.plan.rows)
    assert settings.recompute
    assert "computed again" in str(found)


def test_the_recipes_number_is_kept(model: Any, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(model, job, monkeypatch, free=10**6, tokens=777)[0].micro_batch_tokens == 777
    assert settled(model, job, monkeypatch, free=300, tokens=777)[0].recompute
