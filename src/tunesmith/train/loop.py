"""The training loop, readable top to bottom, and the validation loss.

Not here: settings, rendering, what happens before and after (train.run). `fit` takes everything it needs; the model is
whatever has trainable parameters and answers like a transformers causal language model.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tunesmith.errors import RunError
from tunesmith.runs import Run
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Progress
from tunesmith.train.rows import Row, batches, label_weight, micro_batches
from tunesmith.train.settings import Settings, learning_rate_at
from tunesmith.trie import label_nll_N, lay_out

Watch = Callable[[dict[str, Any]], None]
DIVERGED_STEPS = 10  # the loss is above twice its recent median this many steps in a row


class Interrupted(Exception):  # noqa: N818  (a request, not an error)
    """The run was asked to stop; its checkpoint is saved and the same command resumes it."""


def fit(
    run: Run,
    model: Any,
    *,
    settings: Settings,
    rows: Sequence[Row],
    validation: Sequence[Row],
    watch: Watch,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train the model's trainable parameters; ends with the parameters of the best validation in it.

    Every step: one batch of `settings.batch_size` rows, the weighted mean negative log-likelihood of its labels (summed
    over micro-batches / the labels of the batch, so micro-batches change memory, not the result), one AdamW step.
    The first validation and the first checkpoint come before step 1. Goes on from the newest valid checkpoint.
    Raises RunError on a non-finite loss or gradient, on divergence, on a full disk; Interrupted when asked to stop.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    progress = Progress()
    newest = checkpoint.newest(run.checkpoints_dir)
    if newest:
        progress = checkpoint.restore(newest, model, optimizer=optimizer)
        run.event("resumed", step=progress.step)
    else:
        _validate(run, model, settings, rows=validation, progress=progress, watch=watch)
        checkpoint.save(run.checkpoints_dir, model, optimizer=optimizer, progress=progress)

    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    recent: deque[float] = deque(maxlen=20)
    diverged = 0
    while progress.step < settings.num_steps and not _is_stale(progress, settings):
        epoch, place = divmod(progress.step, steps_per_epoch)
        batch = batches(rows, seed=settings.seed, epoch=epoch, batch_size=settings.batch_size)[place]
        start = time.perf_counter()
        progress.step += 1

        model.train()
        labels = label_weight(batch)
        loss = torch.zeros(())
        computed = 0
        for piece in micro_batches(batch, settings.micro_batch_tokens):
            trie = lay_out([row.rendered for row in piece], [row.weight for row in piece], share=settings.share)
            piece_loss = (label_nll_N(model, trie) * trie.weights_N).sum() / labels
            piece_loss.backward()
            loss += piece_loss.detach()
            computed += len(trie.ids_T)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise RunError(
                f"Step {progress.step}: loss {loss.item()}, gradient norm {norm.item()}; the run was stopped.",
                f"The last good checkpoint is kept in {run.checkpoints_dir}. Try a lower learning_rate.",
            )
        rate = learning_rate_at(progress.step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        seconds = time.perf_counter() - start
        tokens = sum(row.num_tokens for row in batch)
        progress.tokens_trained += sum(row.rendered.num_trained for row in batch)
        progress.tokens_computed += computed
        progress.seconds += seconds
        metric = {
            "kind": "train",
            "step": progress.step,
            "epoch": (progress.step) / steps_per_epoch,
            "loss": loss.item(),
            "learning_rate": rate,
            "grad_norm": norm.item(),
            "tokens": tokens,
            "tokens_computed": computed,
            "tokens_per_s": tokens / seconds,
        }
        run.metric(**metric)
        watch(metric)

        diverged = diverged + 1 if len(recent) == recent.maxlen and loss > 2 * statistics.median(recent) else 0
        recent.append(loss.item())
        if diverged >= DIVERGED_STEPS:
            raise RunError(
                f"The loss has been above twice its recent median since step {progress.step - DIVERGED_STEPS + 1}.",
                f"The last good checkpoint is kept in {run.checkpoints_dir}. Try a lower learning_rate.",
            )
        last = progress.step == settings.num_steps
        if progress.step % settings.validate_every == 0 or last:
            _validate(run, model, settings, rows=validation, progress=progress, watch=watch)
            checkpoint.save(run.checkpoints_dir, model, optimizer=optimizer, progress=progress)
            checkpoint.prune(run.checkpoints_dir, best_step=progress.best_step)
        if stop_asked() and not last:
            checkpoint.save(run.checkpoints_dir, model, optimizer=optimizer, progress=progress)
            raise Interrupted
    if progress.best_step != progress.step:
        checkpoint.restore_adapter(run.checkpoints_dir / f"step-{progress.best_step:06d}", model)
    model.eval()
    return progress


@torch.inference_mode()
def mean_nll(model: Any, rows: Sequence[Row], *, micro_batch_tokens: int, share: bool) -> float:
    """The weighted mean negative log-likelihood (nats per label) of the rows, as `fit` counts it."""
    model.eval()
    total = 0.0
    for piece in micro_batches(rows, micro_batch_tokens):
        trie = lay_out([row.rendered for row in piece], [row.weight for row in piece], share=share)
        total += float((label_nll_N(model, trie) * trie.weights_N).sum())
    return total / label_weight(rows)


def _validate(
    run: Run, model: Any, settings: Settings, *, rows: Sequence[Row], progress: Progress, watch: Watch
) -> None:
    """Measure the validation loss, keep count of the best."""
    loss = mean_nll(model, rows, micro_batch_tokens=settings.micro_batch_tokens, share=settings.share)
    if not math.isfinite(loss):
        raise RunError(f"The validation loss at step {progress.step} is {loss}.", "Try a lower learning_rate.")
    better = progress.best_loss is None or loss < progress.best_loss
    if better:
        progress.best_loss, progress.best_step, progress.stale = loss, progress.step, 0
    else:
        progress.stale += 1
    metric = {"kind": "validation", "step": progress.step, "loss": loss, "best": better}
    run.metric(**metric)
    watch(metric)


def _is_stale(progress: Progress, settings: Settings) -> bool:
    return settings.patience is not None and progress.stale >= settings.patience
