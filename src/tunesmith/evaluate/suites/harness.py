"""Any task of lm-evaluation-harness as a suite, run by its own package on the contender's model.

Not here: our own multiple choice (choices), which agrees with it. Called by cli.regress for `lm-eval:TASK`.
Needs the package lm-eval, and its data sets: from the hub, or from the cache of `datasets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.contender import Contender, Progress
from tunesmith.errors import InputError
from tunesmith.evaluate.likelihood import check_likelihoods, opened
from tunesmith.evaluate.suites.suite import Measure, Measured

MISSING = "Install it: pip install 'tunesmith[harness]'"
BATCH_ROWS = 16


class HarnessSuite:
    """A task by its name, or by a configuration as its package takes it. What it measures is known once it has run."""

    def __init__(self, task: str | Mapping[str, Any], *, limit: int | None = None) -> None:
        self.task = task
        self.name = task if isinstance(task, str) else str(task["task"])
        self.limit = limit
        self.rows = 0
        self.measures: list[Measure] = []
        try:
            import lm_eval  # noqa: F401
        except ImportError as error:
            raise InputError(f"lm-eval:{self.name} needs the package lm-eval.", MISSING) from error

    def check(self, contender: Contender) -> None:
        check_likelihoods(contender)

    def measure(self, contender: Contender, *, progress: Progress | None = None) -> Measured:
        """Values of each row by the task's own metrics, without the chat template. InputError when it cannot run."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with opened(contender) as (base, model):
            causal = model.get_base_model() if hasattr(model, "get_base_model") else model
            lm = HFLM(pretrained=causal, tokenizer=base.renderer.tokenizer, batch_size=BATCH_ROWS)
            try:
                found = simple_evaluate(model=lm, tasks=[self.task], limit=self.limit, bootstrap_iters=0)
            except (OSError, KeyError, ValueError, ConnectionError) as error:
                what = f"lm-eval:{self.name} could not run: {error}"
                raise InputError(what, "See its name in `lm-eval ls tasks`, and that its data are at hand.") from error
        samples = found["samples"]
        if len(samples) != 1:
            todo = f"Name one of them: {', '.join(list(samples)[:8])}."
            raise InputError(f"lm-eval:{self.name} is a group of {len(samples)} tasks.", todo)
        (name, rows), *_ = samples.items()
        return self._measured(rows, found["higher_is_better"][name])

    def _measured(self, rows: list[dict[str, Any]], higher_is_better: Mapping[str, bool | None]) -> Measured:
        """A row comes once for each of the task's filters; figures are named as the harness does: `metric,filter`."""
        values: dict[str, list[float]] = {}
        betters: dict[str, int] = {}
        for row in sorted(rows, key=lambda row: row["doc_id"]):
            suffix = "" if row.get("filter", "none") == "none" else f",{row['filter']}"
            for metric, higher in higher_is_better.items():
                if isinstance(row.get(metric), int | float):
                    values.setdefault(metric + suffix, []).append(float(row[metric]))
                    betters[metric + suffix] = -1 if higher is False else 1
        if not values:
            raise InputError(f"lm-eval:{self.name} has no figure for each row.", "Take another task.")
        self.rows = len({row["doc_id"] for row in rows})
        main = next(iter(values))
        self.measures = [Measure(name, name, better=betters[name], judged=name == main) for name in values]
        records = [{"doc_id": row["doc_id"], "replies": row["filtered_resps"]} for row in rows]
        return Measured(values, records)
