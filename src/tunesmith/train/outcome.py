"""What a finished training has to say for itself: its last figures, and what should be read before it is used.

Not here: the figures of each step (loop, objective), the proof (prove). Called by train.run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import RunError
from tunesmith.runs import Run
from tunesmith.train.checkpoint import Progress
from tunesmith.train.objective import FIGURES

FALLS_ALONG = 1 / 3  # of the rejected answers' fall: the preferred ones then went down with them


def last_metrics(run: Run, progress: Progress) -> dict[str, Any]:
    """The figures of a run that has ended; those of a preference training are its validation's at the best step, and
    `ranking_accuracy_before` that of the base."""
    rows = run.metrics()
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    validations = {row["step"]: row for row in rows if row["kind"] == "validation"}
    best, first = validations.get(progress.best_step, {}), validations.get(0, {})
    figures = {f"validation_{name}": best[name] for name in FIGURES if name in best}
    if "ranking_accuracy" in first:
        figures["ranking_accuracy_before"] = first["ranking_accuracy"]
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "train_loss": losses[-1] if losses else None,
        "tokens_trained": progress.tokens_trained,
        "tokens_computed": progress.tokens_computed,
        "step_seconds": progress.seconds,
        "validation_loss": progress.best_loss,
        **figures,
    }


def refuse_unlearned(progress: Progress) -> None:
    """Raises RunError when no step of a preference training was better, on the validation pairs, than no training: its
    best weights are those of the start, and there is nothing to prove."""
    if progress.best_step == 0:
        raise RunError(
            f"After {progress.step} steps the loss of the validation pairs was never below log 2, where it began: what "
            "was learned of these preferences does not hold for other pairs.",
            "Look at the pairs (do people agree on them?), add more, or try a lower learning_rate.",
        )


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """Known ways in which a training goes wrong while its loss gets better.

    A pair's loss falls also when both answers become less likely, the rejected one more so: the model then moves to
    replies that nobody preferred (Razin et al. 2024, arXiv 2410.08847).
    """
    chosen, rejected = metrics.get("validation_chosen_change", 0.0), metrics.get("validation_rejected_change", 0.0)
    if not (chosen < 0 and chosen <= FALLS_ALONG * rejected):
        return []
    return [
        "The preferred answers became less likely, too: on the validation pairs their log-probability changed by "
        f"{chosen:+.2f} nats an answer, that of the rejected ones by {rejected:+.2f}. Read some replies before using "
        "it. Fewer epochs, a lower learning_rate or a larger beta keep it nearer to the base; a base that was "
        "trained on the preferred answers first (method lora, then `tunesmith merge`) helps, too."
    ]
