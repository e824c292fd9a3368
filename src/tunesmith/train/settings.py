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
from tunesmith.hardware import Hardware, idle_cores
from tunesmith.recipe import Recipe

EPOCHS_BY_ROWS = ((200, 4), (2_000, 3), (20_000, 2))
DPO_EPOCHS_BY_ROWS = ((2_000, 2),)
MIN_WARMUP_STEPS = 5
METHODS = {
    "lora": "a small adapter learns as well as full fine-tuning on thousands of rows",
    "rslora": "LoRA scaled by alpha / sqrt(rank), so that high ranks learn as fast as low ones",
    "dora": "LoRA that trains the length and the direction of each output apart; slower",
    "qlora": "LoRA on a base whose linear layers are held in 4 bits, for memory",
    "full": "all weights are trained, in float32: about 16 bytes of memory a parameter",
    "dpo": "LoRA on pairs of answers: the preferred one gains on the other, by the base's own measure",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the loop uses. Counts of steps are optimiser steps; `validate_every` counts from each epoch's start, and its
    end is always validated. `micro_batch_tokens` is 0 until train.budget has settled it. `rank`, `alpha`, `dropout` and
    `targets` are the adapter's; without one (method "full") they are 0 and empty.
    """

    method: str
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
    loss_by_example: bool
    kept_epochs: int = 0
    recompute: bool = False  # layers are computed again in the backward pass, to save memory (train.budget)
    beta: float | None = None  # of the method "dpo"
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
    epochs, epochs_reason = _pick(recipe.epochs, *_epochs(num_rows, recipe.method))
    num_steps = steps_per_epoch * epochs
    adapter, adapter_choices = _adapter(recipe, num_rows)
    rate, rate_reason = _pick(recipe.learning_rate, *_learning_rate(facts, recipe.method))
    warmup, warmup_reason = _pick(
        recipe.warmup_steps, max(MIN_WARMUP_STEPS, round(0.03 * num_steps)), f"3 % of {num_steps} steps, at least 5"
    )
    length, length_reason = _pick(recipe.max_length, facts.max_positions, "the base's context")
    if length > facts.max_positions:
        raise InputError(
            f"max_length {length} is longer than the base's context of {facts.max_positions} tokens.", "Lower it."
        )
    threads, threads_reason = (recipe.threads, "as in the recipe") if recipe.threads != "auto" else _threads(hardware)
    settings = Settings(
        method=recipe.method,
        **adapter,
        learning_rate=rate,
        warmup_steps=min(warmup, num_steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        epochs=epochs,
        num_steps=num_steps,
        validate_every=math.ceil(steps_per_epoch / recipe.validations_per_epoch),
        patience=recipe.patience,
        batch_size=recipe.batch_size,
        micro_batch_tokens=0 if recipe.micro_batch_tokens == "auto" else recipe.micro_batch_tokens,
        max_length=length,
        seed=recipe.seed,
        threads=threads,
        loss_by_example=recipe.loss_by_example,
        beta=recipe.beta if recipe.method == "dpo" else None,
        kept_epochs=recipe.kept_epochs,
    )
    choices = [
        Choice("method", recipe.method, METHODS[recipe.method]),
        *([Choice("beta", f"{recipe.beta:g}", "the smaller, the further from the base")] if settings.beta else []),
        Choice("epochs", f"{epochs} ({num_steps} steps)", epochs_reason),
        Choice("batch size", f"{recipe.batch_size} rows", "as in the recipe"),
        Choice("learning rate", f"{rate:.2e}", rate_reason),
        Choice("warm-up", f"{settings.warmup_steps} steps", warmup_reason),
        *adapter_choices,
        Choice("longest row", f"{length} tokens", length_reason),
        Choice("threads", str(threads), threads_reason),
    ]
    return settings, choices


def _adapter(recipe: Recipe, num_rows: int) -> tuple[dict[str, Any], list[Choice]]:
    """The settings of the adapter, and why."""
    if recipe.method == "full":
        return {"rank": 0, "alpha": 0.0, "dropout": 0.0, "targets": ()}, []
    rank, rank_reason = _pick(recipe.rank, 32 if num_rows > 10_000 else 16, f"{num_rows:,} rows")
    automatic = (2.0 * rank, "twice the rank")
    if recipe.method == "rslora":
        automatic = (8.0, "8 / sqrt(16) is 2, plain LoRA's scale at its usual rank")
    alpha, alpha_reason = _pick(recipe.alpha, *automatic)
    every = "all linear layers learn best at equal size"
    choices = [
        Choice("LoRA rank", str(rank), rank_reason),
        Choice("LoRA alpha", f"{alpha:g}", alpha_reason),
        Choice("targets", str(recipe.targets), every if recipe.targets == "all-linear" else "as in the recipe"),
    ]
    targets = recipe.targets if isinstance(recipe.targets, str) else tuple(recipe.targets)
    return {"rank": rank, "alpha": alpha, "dropout": recipe.dropout, "targets": targets}, choices


def learning_rate_at(step: int, settings: Settings) -> float:
    """Learning rate of step 1..num_steps: linear warm-up, then half a cosine down to 0."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.num_steps - settings.warmup_steps + 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _pick(asked: Any, value: Any, reason: str) -> tuple[Any, str]:
    return (value, reason) if asked == "auto" else (asked, "as in the recipe")


def _epochs(num_rows: int, method: str) -> tuple[int, str]:
    if method == "dpo":
        return next((epochs for limit, epochs in DPO_EPOCHS_BY_ROWS if num_rows <= limit), 1), f"{num_rows:,} pairs"
    return default_epochs(num_rows), f"{num_rows:,} rows"


def default_epochs(num_rows: int) -> int:
    """The fewer rows, the more often they are seen."""
    return next((epochs for limit, epochs in EPOCHS_BY_ROWS if num_rows <= limit), 1)


def _threads(machine: Hardware) -> tuple[int, str]:
    """The idle cores: a thread on a busy one makes the others wait for it at every product."""
    idle = idle_cores(machine.cores)
    reason = machine.cores_source if idle == machine.cores else f"of {machine.cores} cores the others are busy"
    return idle, reason


def _learning_rate(facts: ModelFacts, method: str) -> tuple[float, str]:
    """5e-5 * 10 * (2000 / hidden)^p, p = 0.0775 for Qwen, else 0.781 (tinker-cookbook, hyperparam_utils); the 10 is
    an adapter's (LoRA Without Regret). Preferences take a twentieth to a fortieth of that."""
    power = 0.0775 if facts.model_type.startswith("qwen") else 0.781
    rate = 5e-5 * (2000 / facts.hidden_size) ** power
    if method == "full":
        return rate, f"a tenth of LoRA's, at a hidden size of {facts.hidden_size}"
    if method == "dpo":
        return 10 * rate / 20, f"a twentieth of LoRA's, at a hidden size of {facts.hidden_size}"
    return 10 * rate, f"LoRA at a hidden size of {facts.hidden_size}"
