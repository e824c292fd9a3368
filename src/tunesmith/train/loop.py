"""The training loop, readable top to bottom, and the validation loss.

Not here: settings, rendering, what happens before and after (train.run). `fit` takes everything it needs; the model is
whatever has trainable parameters and answers like a transformers causal language model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tunesmith.errors import RunError
from tunesmith.nll import label_nll_N
from tunesmith.runs import Run
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Progress
from tunesmith.train.memory import within_memory
from tunesmith.train.meter import Meter, Work
from tunesmith.train.rows import Row, batches, label_weight, micro_batches, rows_sha256
from tunesmith.train.settings import Settings, learning_rate_at
from tunesmith.trie import lay_out

Watch = Callable[[dict[str, Any]], None]
RECENT_STEPS = 20  # the median of so many losses is what a new one is held against
LEARNED_LOSS = 1e-3  # nats; below it there may be nothing left to learn
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
    Raises RunError on a non-finite loss or gradient, on divergence, on a full disk, when memory runs out twice;
    Interrupted when asked to stop, which is heard between micro-batches: a step begun is done again.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    newest = checkpoint.newest(run.checkpoints_dir)
    progress = checkpoint.restore(newest, model, optimizer=optimizer) if newest else Progress()
    if newest:
        run.event("resumed", step=progress.step)
        checkpoint.prune(run.checkpoints_dir, best_step=progress.best_step)  # a kill may have come before it
    losses = [row["loss"] for row in run.metrics() if row["kind"] == "train" and row["step"] <= progress.step]
    longest = max(row.num_tokens for row in (*rows, *validation))
    fitting = partial(within_memory, run, progress, tokens=settings.micro_batch_tokens, longest=longest)
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    meter = Meter(model)
    try:
        while True:
            random = checkpoint.random_state()
            last = progress.step == settings.num_steps
            epoch, place = divmod(progress.step, steps_per_epoch)
            if (last or place % settings.validate_every == 0) and progress.validated_step != progress.step:
                measure = partial(mean_nll, model, validation, share=settings.share, stop_asked=stop_asked)
                _validated(run, progress, loss=fitting(compute=measure), watch=watch)
                checkpoint.save(run.checkpoints_dir, model, optimizer=optimizer, progress=progress)
                checkpoint.prune(run.checkpoints_dir, best_step=progress.best_step)
            if last or _is_stale(progress, settings):
                break
            batch = batches(rows, seed=settings.seed, epoch=epoch, batch_size=settings.batch_size)[place]

            meter.start()
            loss, work = fitting(compute=partial(_accumulate, model, batch, settings, stop_asked))
            progress.step += 1
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise RunError(
                    f"Step {progress.step}: loss {loss.item()}, gradient norm {norm.item()}; the run was stopped.",
                    f"The last good checkpoint is kept in {run.checkpoints_dir}. Try a lower learning_rate.",
                )
            if norm == 0 and loss > LEARNED_LOSS:
                raise RunError(
                    f"Step {progress.step}: the loss is {loss.item():.4f} and its gradient exactly 0.",
                    "Nothing is learned: what is trained does not reach the output. Try a lower learning_rate.",
                )
            rate = learning_rate_at(progress.step, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

            cost = meter.stop(batch, work)
            progress.tokens_trained += work.labels
            progress.tokens_computed += work.tokens
            progress.seconds += cost["seconds"]
            metric = {
                "kind": "train",
                "step": progress.step,
                "epoch": progress.step / steps_per_epoch,
                "loss": loss.item(),
                "learning_rate": rate,
                "grad_norm": norm.item(),
                **cost,
                "rows": rows_sha256(batch),
            }
            run.metric(**metric)
            watch(metric)
            if settings.loss_by_example:
                run.example_losses(progress.step, work.by_example())

            losses.append(loss.item())
            if _is_diverging(losses):
                raise RunError(
                    f"The loss is above twice its recent median since step {progress.step - DIVERGED_STEPS + 1}.",
                    f"The best checkpoint, step {progress.best_step}, is kept in {run.checkpoints_dir}. "
                    "Try a lower learning_rate.",
                )
    except Interrupted:
        checkpoint.set_random_state(random)  # what a step thrown away has drawn is drawn again
        checkpoint.save(run.checkpoints_dir, model, optimizer=optimizer, progress=progress)
        raise
    if progress.best_step != progress.step:
        checkpoint.restore_adapter(run.checkpoints_dir / f"step-{progress.best_step:06d}", model)
    model.eval()
    return progress


def _accumulate(
    model: Any, batch: Sequence[Row], settings: Settings, stop_asked: Callable[[], bool], *, micro_batch_tokens: int
) -> tuple[torch.Tensor, Work]:
    """The batch's mean loss, its gradients in `.grad` from zero on, and what was computed.

    A function of its own, so that a try that ran out of memory takes its tensors with it.
    """
    model.train()
    model.zero_grad(set_to_none=True)
    labels = label_weight(batch)
    loss = torch.zeros((), device=model.device)
    work = Work()
    for piece in micro_batches(batch, micro_batch_tokens):
        if stop_asked():
            raise Interrupted
        trie = lay_out([row.rendered for row in piece], [row.weight for row in piece], share=settings.share)
        nll_N = label_nll_N(model, trie, recompute=settings.recompute)
        piece_loss = (nll_N * trie.weights_N.to(nll_N.device)).sum() / labels
        piece_loss.backward()
        loss += piece_loss.detach()
        work.add(piece, trie=trie, nll_N=nll_N)
    return loss, work


@torch.inference_mode()
def mean_nll(
    model: Any,
    rows: Sequence[Row],
    *,
    micro_batch_tokens: int,
    share: bool,
    stop_asked: Callable[[], bool] = lambda: False,
) -> float:
    """The weighted mean negative log-likelihood (nats per label) of the rows, as `fit` counts it."""
    model.eval()
    total = 0.0
    for piece in micro_batches(rows, micro_batch_tokens):
        if stop_asked():
            raise Interrupted
        trie = lay_out([row.rendered for row in piece], [row.weight for row in piece], share=share)
        total += float((label_nll_N(model, trie).cpu() * trie.weights_N).sum())
    return total / label_weight(rows)


def _validated(run: Run, progress: Progress, *, loss: float, watch: Watch) -> None:
    """Write a validation loss down, keep count of the best."""
    if not math.isfinite(loss):
        raise RunError(f"The validation loss at step {progress.step} is {loss}.", "Try a lower learning_rate.")
    progress.validated_step = progress.step
    better = progress.best_loss is None or loss < progress.best_loss
    if better:
        progress.best_loss, progress.best_step, progress.stale = loss, progress.step, 0
    else:
        progress.stale += 1
    metric = {"kind": "validation", "step": progress.step, "loss": loss, "best": better}
    run.metric(**metric)
    watch(metric)


def _is_diverging(losses: Sequence[float]) -> bool:
    """Whether each of the last DIVERGED_STEPS losses is above twice the median of the RECENT_STEPS before it."""
    first = len(losses) - DIVERGED_STEPS
    return first >= RECENT_STEPS and all(
        losses[step] > 2 * statistics.median(losses[step - RECENT_STEPS : step]) for step in range(first, len(losses))
    )


def _is_stale(progress: Progress, settings: Settings) -> bool:
    return settings.patience is not None and progress.stale >= settings.patience
