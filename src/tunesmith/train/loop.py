"""The training loop, readable top to bottom, and the validation loss.

Not here: the loss (objective), settings, rendering, what happens before and after (train.run). `fit` takes everything
it needs; the model is whatever has trainable parameters and answers like a transformers causal language model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tunesmith.errors import RunError
from tunesmith.nll import label_scores_N
from tunesmith.runs import Run
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Progress
from tunesmith.train.memory import within_memory
from tunesmith.train.meter import Meter, Work
from tunesmith.train.objective import Measured, Objective, objective_of
from tunesmith.train.rows import Row, batches, lay_out_rows, micro_batches, rows_sha256
from tunesmith.train.settings import Settings, learning_rate_at

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

    Every step: one batch of `settings.batch_size` rows, the loss of the method's objective on them (summed over
    micro-batches / the size of the batch, so micro-batches change memory, not the result), one AdamW step.
    The first validation and the first checkpoint come before step 1. Goes on from the newest valid checkpoint.
    Raises RunError on a non-finite loss or gradient, on divergence, on a full disk, when memory runs out twice;
    Interrupted when asked to stop, which is heard between micro-batches: a step begun is done again.
    """
    objective = objective_of(settings.method, beta=settings.beta)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    prune = partial(
        checkpoint.prune, run.checkpoints_dir, steps_per_epoch=steps_per_epoch, kept_epochs=settings.kept_epochs
    )
    newest = checkpoint.newest(run.checkpoints_dir)
    progress = checkpoint.restore(newest, model, optimizer=optimizer) if newest else Progress()
    if newest:
        run.event("resumed", step=progress.step)
        prune(best_step=progress.best_step)  # a kill may have come before it
    losses = [row["loss"] for row in run.metrics() if row["kind"] == "train" and row["step"] <= progress.step]
    longest = max(row.num_tokens for row in (*rows, *validation))
    fitting = partial(within_memory, run, progress, tokens=settings.micro_batch_tokens, longest=longest)
    precision = str(model.dtype).removeprefix("torch.")
    meter = Meter(model)
    try:
        while True:
            random = checkpoint.random_state()
            last = progress.step == settings.num_steps
            epoch, place = divmod(progress.step, steps_per_epoch)
            if (last or place % settings.validate_every == 0) and progress.validated_step != progress.step:
                measure = partial(
                    mean_loss, model, validation, objective=objective, share=settings.share, stop_asked=stop_asked
                )
                measured = fitting(compute=measure)
                if progress.step == 0:
                    objective.check_start(measured.loss, dtype=precision)
                _validated(run, progress, measured=measured, watch=watch)
                checkpoint.save(run.checkpoints_dir, model, optimizer=optimizer, progress=progress)
                prune(best_step=progress.best_step)
            if last or _is_stale(progress, settings):
                break
            batch = batches(rows, seed=settings.seed, epoch=epoch, batch_size=settings.batch_size)[place]

            meter.start()
            accumulate = partial(
                _accumulate, model, batch, settings, parameters=parameters, objective=objective, stop_asked=stop_asked
            )
            loss, work = fitting(compute=accumulate)
            if progress.step == 0 and not settings.dropout:
                objective.check_start(loss.item(), dtype=precision)
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
                **work.figures(objective),
                **cost,
                "rows": rows_sha256(batch),
            }
            run.metric(**metric)
            watch(metric)
            if settings.loss_by_example:
                run.example_losses(progress.step, work.by_example(objective))

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
    model: Any,
    batch: Sequence[Row],
    settings: Settings,
    *,
    parameters: Sequence[torch.nn.Parameter],
    objective: Objective,
    stop_asked: Callable[[], bool],
    micro_batch_tokens: int,
) -> tuple[torch.Tensor, Work]:
    """The batch's loss, its gradients in `.grad` from zero on, and what was computed.

    A function of its own, so that a try that ran out of memory takes its tensors with it.
    """
    model.train()
    for parameter in parameters:  # `zero_grad` would look for them in thousands of modules
        parameter.grad = None
    size = objective.size(batch)
    loss = torch.zeros((), device=model.device)
    work = Work()
    for piece in micro_batches(batch, micro_batch_tokens):
        if stop_asked():
            raise Interrupted
        trie = lay_out_rows(piece, share=settings.share)
        nll_N, right_N = label_scores_N(model, trie, recompute=settings.recompute)
        piece_sum, figures = objective.sums(piece, trie=trie, nll_N=nll_N)
        piece_loss = piece_sum / size
        piece_loss.backward()
        loss += piece_loss.detach()
        figures = {name: total / size for name, total in figures.items()}
        work.add(piece, trie=trie, nll_N=nll_N, right_N=right_N, figures=figures)
    return loss, work


@torch.inference_mode()
def mean_loss(
    model: Any,
    rows: Sequence[Row],
    *,
    objective: Objective,
    micro_batch_tokens: int,
    share: bool,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Measured:
    """The objective's loss of the rows and its figures, as `fit` counts them."""
    model.eval()
    total = 0.0
    totals: dict[str, float] = {}
    right = labels = 0
    for piece in micro_batches(rows, micro_batch_tokens):
        if stop_asked():
            raise Interrupted
        trie = lay_out_rows(piece, share=share)
        nll_N, right_N = label_scores_N(model, trie)
        piece_sum, figures = objective.sums(piece, trie=trie, nll_N=nll_N.cpu())
        total += float(piece_sum)
        totals = {name: totals.get(name, 0.0) + value for name, value in figures.items()}
        right, labels = right + int(right_N.sum()), labels + len(right_N)
    size = objective.size(rows)
    figures = {name: value / size for name, value in totals.items()}
    return Measured(total / size, objective.of_tokens(right, labels) | figures)


def _validated(run: Run, progress: Progress, *, measured: Measured, watch: Watch) -> None:
    """Write a validation loss down, keep count of the best."""
    loss = measured.loss
    if not math.isfinite(loss):
        raise RunError(f"The validation loss at step {progress.step} is {loss}.", "Try a lower learning_rate.")
    progress.validated_step = progress.step
    better = progress.best_loss is None or loss < progress.best_loss
    if better:
        progress.best_loss, progress.best_step, progress.stale = loss, progress.step, 0
    else:
        progress.stale += 1
    metric = {"kind": "validation", "step": progress.step, "loss": loss, "best": better, **measured.figures}
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
