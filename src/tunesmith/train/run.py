"""One training from examples to a proved adapter or model: render, settle, check, fit, save, prove.

Not here: files, splits and ledgers of lines (worker joins them), the step itself (loop). Called by the worker.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tunesmith import hardware
from tunesmith.adapter import attach_lora, detach, save_adapter, save_form, save_model, unfreeze
from tunesmith.chat import Example
from tunesmith.errors import InputError, RunError, TunesmithError
from tunesmith.facts import weights_sha256
from tunesmith.model import Base
from tunesmith.products import choose_route
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.train import trackers
from tunesmith.train.budget import within_budget
from tunesmith.train.checkpoint import Progress, sync_folder
from tunesmith.train.loop import Interrupted, Watch, fit
from tunesmith.train.memory import is_out_of_memory, shortage
from tunesmith.train.meter import peak_in_words
from tunesmith.train.outcome import last_metrics, refuse_unlearned, warnings_of
from tunesmith.train.pairs import apart, render_pairs
from tunesmith.train.preflight import check_layout, check_vocabulary
from tunesmith.train.prove import prove
from tunesmith.train.reference import with_cached_reference, with_reference
from tunesmith.train.rows import Drop, Row, loud_drops, render_rows
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
    warnings: list[str]  # what should be read before going on


def plan(
    base: Base,
    recipe: Recipe,
    *,
    examples: Sequence[Example],
    validation: Sequence[Example],
    lines: Sequence[int] | None = None,
) -> Plan:
    """Render everything and settle every value, before anything is written. Raises InputError when no row is left.

    `lines` are those of the training examples in their file.
    """
    trackers.require(recipe.trackers)
    machine = hardware.detect()
    if base.trained_in_place:
        raise RunError("The base in memory was trained in place by a full fine-tuning.", "Load it again.")
    _check_targets(base, recipe)
    limit = base.facts.max_positions if recipe.max_length == "auto" else recipe.max_length
    render = render_pairs if recipe.method == "dpo" else render_rows
    rows, drops = render(examples, base.renderer, max_length=limit, lines=lines)
    watched, validation_drops = render(validation, base.renderer, max_length=limit)
    for name, left, dropped in (("training", rows, drops), ("validation", watched, validation_drops)):
        if not left:
            reason = dropped[0].reason if dropped else "there are none"
            raise InputError(f"No {name} row is left: {reason}", "Raise max_length, or choose another base.")
    check_vocabulary(base, apart([*rows, *watched]), embeddings_train=recipe.method == "full")
    settings, choices = settle(recipe, num_rows=len(rows), facts=base.facts, hardware=machine)
    choices.append(_precision_choice(base, recipe))
    choices.append(Choice("matrix route", *choose_route(base.model.dtype)))
    warnings = [*loud_drops(drops, examples), *loud_drops(validation_drops, validation)]
    if ignored := getattr(base.model.config.get_text_config(), "attention_dropout", None):
        warnings.append(
            f"{base.name} asks for attention dropout of {ignored}; it is not applied. Set dropout for the adapter's."
        )
    return Plan(rows, watched, drops, validation_drops, settings, choices, warnings)


def _precision_choice(base: Base, recipe: Recipe) -> Choice:
    value, reason = _precision(base), base.dtype_reason
    if recipe.method == "full":
        reason = "all weights are trained"
    if base.quantized:
        value += f", linear layers in 4 bits: {base.model.get_memory_footprint() / 1e6:,.0f} MB"
    return Choice("precision", value, reason)


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
    """Train, save the best adapter, or model, and prove it in a fresh process; returns the last metrics.

    The run ends as "finished" only when every check passed; otherwise as "failed" with the reason, or "interrupted".
    A full fine-tuning trains the weights of `base` in place: afterwards it is of no use.
    """
    settings = _as_begun(run, plan.settings)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    run.set_status("running", base_sha256=base.sha256)
    model = _trainable(base, settings)
    try:
        settings = _checked(run, base, model, settings=settings, rows=plan.rows, say=say)
        start = time.perf_counter()
        rows, validation = plan.rows, plan.validation
        if settings.method == "dpo":
            ask = partial(with_reference, model, micro_batch_tokens=settings.micro_batch_tokens, share=settings.share)
            ask = partial(ask, stop_asked=stop_asked)
            rows, validation = with_cached_reference(run, base, parts=(rows, validation), compute=ask, say=say)
        progress = fit(
            run, model, settings=settings, rows=rows, validation=validation, watch=watch, stop_asked=stop_asked
        )
        seconds = time.perf_counter() - start
        if settings.method == "dpo":
            refuse_unlearned(progress)
        weights_dir = _publish(run, model, base=base, method=settings.method)
        say(f"Checking the saved {weights_dir.name} in a fresh process.")
        run.set_status("proving")
        run.write_json("claim.json", _claim(base, settings, progress))
        checks = prove(run)
        metrics = last_metrics(run, progress) | {"seconds": seconds}
        facts: dict[str, Any] = {f"{weights_dir.name}_sha256": weights_sha256(weights_dir)}
        if warnings := warnings_of(metrics):
            facts["warnings"] = warnings
        run.set_status("finished", metrics=metrics, proof=checks, **facts)
        return metrics
    except Interrupted:
        run.set_status("interrupted")
        raise
    except TunesmithError as error:
        _set_failed(run, error)
        raise
    except (OSError, SafetensorError, MemoryError, RuntimeError) as error:
        _raise_refusal(run, error)
        raise
    finally:
        if settings.method != "full":
            detach(model)


def _checked(run: Run, base: Base, model: Any, *, settings: Settings, rows: Sequence[Row], say: Say) -> Settings:
    """The settings as the loop uses them, once a batch of them was seen to compute what its rows say."""
    share, words = check_layout(model, apart(rows))
    say(words[0].upper() + words[1:] + ".")
    settings, budget = within_budget(model, replace(settings, share=share), rows=rows)
    say(f"{budget}\n{peak_in_words(model)}")
    run.write_json("settings.json", settings.as_dict() | {"precision": _precision(base)})
    run.event("checked", layout=words)
    if settings.method != "full":
        save_form(model, run.form_dir, base=base)
    return settings


def _raise_refusal(run: Run, error: Exception) -> None:
    """Say in words what the machine would not do; nothing when it is something else."""
    if is_out_of_memory(error):
        refusal = shortage(error)
    elif isinstance(error, OSError | SafetensorError):
        what = f"{run.directory} cannot be written: {getattr(error, 'strerror', None) or error}."
        refusal = RunError(what, "Free space there and start the same command again: it goes on.")
    else:
        return
    _set_failed(run, refusal)
    raise refusal from error


def _set_failed(run: Run, reason: Exception) -> None:
    with contextlib.suppress(OSError):  # a full disk may be the reason
        run.set_status("failed", reason=str(reason))


def _as_begun(run: Run, settings: Settings) -> Settings:
    """A resumed run keeps its threads and micro-batches: with others the same sums may come out in other bits."""
    if not (run.directory / "settings.json").is_file():
        return settings
    begun = run.read_json("settings.json")
    return replace(settings, threads=begun["threads"], micro_batch_tokens=begun["micro_batch_tokens"])


def _trainable(base: Base, settings: Settings) -> Any:
    """The model to train: the base with a fresh adapter, or the base itself."""
    if settings.method == "full":
        return unfreeze(base)
    return attach_lora(
        base,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=settings.targets,
        method=settings.method,
    )


def _publish(run: Run, model: Any, *, base: Base, method: str) -> Path:
    """Write the adapter, or the model, beside its place and rename it there; where it is."""
    final = run.model_dir if method == "full" else run.adapter_dir
    staged = run.directory / f".{final.name}-staged"
    shutil.rmtree(staged, ignore_errors=True)
    if method == "full":
        save_model(model, staged, base=base, facts={"method": method})
    else:
        save_adapter(model, staged, base=base)
    if not any(staged.glob("*.safetensors")):
        raise RunError(f"The weights were not written to {staged}.")
    sync_folder(staged)
    shutil.rmtree(final, ignore_errors=True)
    staged.replace(final)
    return final


def _claim(base: Base, settings: Settings, progress: Progress) -> dict[str, Any]:
    """What the fresh process has to find again."""
    return {
        "base": base.name,
        "base_sha256": base.sha256,
        "method": settings.method,
        "beta": settings.beta,
        "quantized": base.quantized,
        "precision": _precision(base),
        "threads": settings.threads,
        "max_length": settings.max_length,
        "micro_batch_tokens": settings.micro_batch_tokens,
        "share": settings.share,
        "validation_loss": progress.best_loss,
    }


def _precision(base: Base) -> str:
    return str(base.model.dtype).removeprefix("torch.")
