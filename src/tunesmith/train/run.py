"""One training from examples to a proved adapter: render, settle, check, fit, save, prove.

Not here: files, splits and ledgers of lines (worker joins them), the step itself (loop). Called by the worker.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith import hardware
from tunesmith.chat import Example
from tunesmith.errors import InputError, RunError
from tunesmith.facts import weights_sha256
from tunesmith.model import ADAPTER_FILE, Base, attach_lora, detach, save_adapter
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.train.checkpoint import Progress
from tunesmith.train.loop import Interrupted, Watch, fit, mean_nll
from tunesmith.train.preflight import check_layout
from tunesmith.train.prove import prove
from tunesmith.train.rows import Drop, Row, render_rows
from tunesmith.train.settings import Choice, Settings, settle

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be trained and how; `drops` and `validation_drops` are the examples that will not be."""

    rows: list[Row]
    validation: list[Row]
    drops: list[Drop]
    validation_drops: list[Drop]
    settings: Settings
    choices: list[Choice]


def plan(base: Base, recipe: Recipe, *, examples: Sequence[Example], validation: Sequence[Example]) -> Plan:
    """Render everything and settle every value, before anything is written. Raises InputError when no row is left."""
    machine = hardware.detect()
    _check_targets(base, recipe)
    limit = base.facts.max_positions if recipe.max_length == "auto" else recipe.max_length
    rows, drops = render_rows(examples, base.renderer, max_length=limit)
    watched, validation_drops = render_rows(validation, base.renderer, max_length=limit)
    for name, left, dropped in (("training", rows, drops), ("validation", watched, validation_drops)):
        if not left:
            reason = dropped[0].reason if dropped else "there are none"
            raise InputError(f"No {name} row is left: {reason}", "Raise max_length, or choose another base.")
    settings, choices = settle(recipe, num_rows=len(rows), facts=base.facts, hardware=machine)
    choices.append(Choice("precision", _precision(base), base.dtype_reason))
    return Plan(rows, watched, drops, validation_drops, settings, choices)


def _check_targets(base: Base, recipe: Recipe) -> None:
    """PEFT passes over a target that fits nothing as long as another fits: a typo would train less than asked."""
    if isinstance(recipe.targets, str):
        return
    names = {name for name, _ in base.model.named_modules()}
    missing = [target for target in recipe.targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if missing:
        ends = sorted({name.rpartition(".")[2] for name in names if name.endswith(("_proj", "_fc", "fc1", "fc2"))})
        raise InputError(
            f"The targets {', '.join(missing)} are no layers of {base.name}.", f"It has {', '.join(ends)}."
        )


def train(
    run: Run,
    base: Base,
    *,
    plan: Plan,
    watch: Watch,
    say: Say,
    stop_asked: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train, save the best adapter, prove it in a fresh process; returns the last metrics.

    The run ends as "finished" only when every check passed; otherwise as "failed" with the reason, or "interrupted".
    """
    torch.set_num_threads(plan.settings.threads)
    torch.manual_seed(plan.settings.seed)
    settings = plan.settings
    run.set_status("running", base_sha256=base.sha256)
    model = attach_lora(
        base, rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout, targets=settings.targets
    )
    try:
        share, words = check_layout(model, plan.rows)
        say(words[0].upper() + words[1:] + ".")
        settings = replace(settings, share=share)
        run.write_json("settings.json", settings.as_dict() | {"precision": _precision(base)})
        run.event("checked", layout=words)
        start = time.perf_counter()
        progress = fit(
            run,
            model,
            settings=settings,
            rows=plan.rows,
            validation=plan.validation,
            watch=watch,
            stop_asked=stop_asked,
        )
        loss = mean_nll(model, plan.validation, micro_batch_tokens=settings.micro_batch_tokens, share=share)
        seconds = time.perf_counter() - start
        _publish(run, model, base)
        say("Checking the saved adapter in a fresh process.")
        run.set_status("proving")
        run.write_json("claim.json", _claim(base, settings, loss))
        checks = prove(run)
        metrics = _last_metrics(run, progress) | {"validation_loss": loss, "seconds": seconds}
        run.set_status("finished", metrics=metrics, proof=checks, adapter_sha256=weights_sha256(run.adapter_dir))
        return metrics
    except Interrupted:
        run.set_status("interrupted")
        raise
    except (RunError, InputError) as error:
        run.set_status("failed", reason=str(error))
        raise
    finally:
        detach(model)


def _last_metrics(run: Run, progress: Progress) -> dict[str, Any]:
    losses = [row["loss"] for row in run.metrics() if row["kind"] == "train"]
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "train_loss": losses[-1] if losses else None,
        "tokens_trained": progress.tokens_trained,
        "tokens_computed": progress.tokens_computed,
        "step_seconds": progress.seconds,
    }


def _publish(run: Run, model: Any, base: Base) -> None:
    """Write the adapter beside its place and rename it there."""
    staged = run.directory / ".adapter-staged"
    shutil.rmtree(staged, ignore_errors=True)
    save_adapter(model, staged, base=base)
    if not (staged / ADAPTER_FILE).is_file():
        raise RunError(f"The adapter was not written to {staged}.")
    shutil.rmtree(run.adapter_dir, ignore_errors=True)
    staged.replace(run.adapter_dir)


def _claim(base: Base, settings: Settings, loss: float) -> dict[str, Any]:
    """What the fresh process has to find again."""
    return {
        "base": base.name,
        "base_sha256": base.sha256,
        "precision": _precision(base),
        "threads": settings.threads,
        "max_length": settings.max_length,
        "micro_batch_tokens": settings.micro_batch_tokens,
        "share": settings.share,
        "validation_loss": loss,
    }


def _precision(base: Base) -> str:
    return str(base.model.dtype).removeprefix("torch.")
