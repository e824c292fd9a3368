"""From a recipe with "auto" in it to settings: each value with the reason for it.

Not here: reading the recipe (recipe) or using the settings (loop). Sources: LoRA Without Regret (Schulman et al. 2025)
for the learning rate and the targets; the sizes in rows are this project's defaults.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import InputError
from tunesmith.facts import ModelFacts
from tunesmith.hardware import Hardware
from tunesmith.recipe import Recipe

EPOCHS_BY_ROWS = ((200, 4), (2_000, 3), (20_000, 2))
MIN_WARMUP_STEPS = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """What the loop uses. Counts of steps are optimiser steps; `validate_every` is in steps."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | str
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    epochs: int
    num_steps: int
    validate_every: int
    patience: int | None
    batch_size: int
    micro_batch_tokens: int
    max_length: int
    seed: int
    threads: int
    share: bool = True  # compute common prefixes once; off where the preflight found that it changes the result

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting with where its value comes from, for people."""

    name: str
    value: str
    reason: str


def settle(recipe: Recipe, *, num_rows: int, facts: ModelFacts, hardware: Hardware) -> tuple[Settings, list[Choice]]:
    """Fill in every "auto". `num_rows` counts the rows that train. InputError for values the base cannot have."""
    steps_per_epoch = math.ceil(num_rows / recipe.batch_size)
    epochs, epochs_reason = _pick(recipe.epochs, *_epochs(num_rows))
    num_steps = steps_per_epoch * epochs
    rank, rank_reason = _pick(recipe.rank, 32 if num_rows > 10_000 else 16, f"{num_rows:,} rows")
    alpha, alpha_reason = _pick(recipe.alpha, 2.0 * rank, "twice the rank")
    rate, rate_reason = _pick(recipe.learning_rate, *_learning_rate(facts))
    warmup, warmup_reason = _pick(
        recipe.warmup_steps, max(MIN_WARMUP_STEPS, round(0.03 * num_steps)), f"3 % of {num_steps} steps, at least 5"
    )
    length, length_reason = _pick(recipe.max_length, facts.max_positions, "the base's context")
    if length > facts.max_positions:
        raise InputError(
            f"max_length {length} is longer than the base's context of {facts.max_positions} tokens.", "Lower it."
        )
    threads, threads_reason = _pick(recipe.threads, hardware.cores, hardware.cores_source)
    settings = Settings(
        rank=rank,
        alpha=alpha,
        dropout=recipe.dropout,
        targets=recipe.targets if isinstance(recipe.targets, str) else tuple(recipe.targets),
        learning_rate=rate,
        warmup_steps=min(warmup, num_steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        epochs=epochs,
        num_steps=num_steps,
        validate_every=max(1, steps_per_epoch // recipe.validations_per_epoch),
        patience=recipe.patience,
        batch_size=recipe.batch_size,
        micro_batch_tokens=recipe.micro_batch_tokens,
        max_length=length,
        seed=recipe.seed,
        threads=threads,
    )
    choices = [
        Choice("epochs", f"{epochs} ({num_steps} steps)", epochs_reason),
        Choice("batch size", f"{recipe.batch_size} rows", "as in the recipe"),
        Choice("learning rate", f"{rate:.2e}", rate_reason),
        Choice("warm-up", f"{settings.warmup_steps} steps", warmup_reason),
        Choice("LoRA rank", str(rank), rank_reason),
        Choice("LoRA alpha", f"{alpha:g}", alpha_reason),
        Choice(
            "targets",
            str(recipe.targets),
            "all linear layers learn best at equal size" if recipe.targets == "all-linear" else "as in the recipe",
        ),
        Choice("longest row", f"{length} tokens", length_reason),
        Choice("threads", str(threads), threads_reason),
    ]
    return settings, choices


def learning_rate_at(step: int, settings: Settings) -> float:
    """Learning rate of step 1..num_steps: linear warm-up, then half a cosine down to 0."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.num_steps - settings.warmup_steps + 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _pick(asked: Any, value: Any, reason: str) -> tuple[Any, str]:
    return (value, reason) if asked == "auto" else (asked, "as in the recipe")


def _epochs(num_rows: int) -> tuple[int, str]:
    epochs = next((epochs for limit, epochs in EPOCHS_BY_ROWS if num_rows <= limit), 1)
    return epochs, f"{num_rows:,} rows"


def _learning_rate(facts: ModelFacts) -> tuple[float, str]:
    """5e-5 * 10 * (2000 / hidden)^p, p = 0.0775 for Qwen, else 0.781 (tinker-cookbook, hyperparam_utils)."""
    power = 0.0775 if facts.model_type.startswith("qwen") else 0.781
    return 5e-4 * (2000 / facts.hidden_size) ** power, f"LoRA at a hidden size of {facts.hidden_size}"
