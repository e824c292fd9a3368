"""What a run directory says while it grows, in the events of a job: steps with their losses, rows left out, the end.

Not here: writing them down (serve.records.queue). A worker that resumes writes some steps again, to the same figures;
each step is told once, by its key.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunesmith.runs import Run
from tunesmith.serve.records.events import Event

METRIC_NAMES = (
    "step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy", "full_valid_loss",
    "full_valid_mean_token_accuracy",
)  # fmt: skip
PAIR_NAMES = ("margin", "pair_accuracy", "chosen_change", "rejected_change")  # ours, for preferences
ACCURACY = "token_accuracy"  # in a metric line; runs of earlier versions and of preferences have none


class MetricsTail:
    """The lines of a run's metrics.jsonl as they come, each read once."""

    def __init__(self, run: Run) -> None:
        self._path = run.directory / "metrics.jsonl"
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """What was written since the last call. A line torn by a kill is passed over, one that grows is left."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # the line a kill tore


class Progress:
    """Steps of a run as events. The validation after a step is told with the step, so that the newest one waits for
    what follows it; `held` is that step's train line."""

    def __init__(self, run: Run) -> None:
        self._tail = MetricsTail(run)
        self._run = run
        self._total = 0
        self._held: dict[str, Any] | None = None
        self._seconds: list[float] = []  # of the last steps
        self._step = 0

    def news(self, *, ended: bool = False) -> list[Event]:
        """Events for what was written since the last call; with `ended` also for the last step."""
        events = [self._told(*pair) for pair in self._pairs()]
        if ended and self._held:
            events.append(self._told(self._held, None))
            self._held = None
        return events

    def estimated_finish(self) -> int | None:
        """Seconds since 1970, by the mean time of a step; None before the first."""
        if not self._seconds:
            return None
        left = self._steps() - self._step
        return int(time.time() + left * sum(self._seconds) / len(self._seconds))

    def _pairs(self) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
        for row in self._tail.read():
            held = self._held
            if row["kind"] == "train":
                if held and held["step"] < row["step"]:
                    yield held, None
                self._held, self._step = row, row["step"]
                self._seconds = [*self._seconds[-19:], row["seconds"]]
            elif held and held["step"] == row["step"]:
                yield held, row
                self._held = None

    def _told(self, train: Mapping[str, Any], validation: Mapping[str, Any] | None) -> Event:
        step, loss = int(train["step"]), float(train["loss"])
        valid = validation or {}
        watched = f", validation loss={valid['loss']:.2f}" if valid else ""
        data = {"step": step, "total_steps": self._steps(), "train_loss": loss, "valid_loss": valid.get("loss")}
        data["train_mean_token_accuracy"] = train.get(ACCURACY)
        data["valid_mean_token_accuracy"] = valid.get(ACCURACY)
        data |= _pair_figures("train", train) | _pair_figures("valid", valid)
        return Event(f"step {step}", f"Step {step}/{self._steps()}: training loss={loss:.2f}{watched}", data=data)

    def _steps(self) -> int:
        self._total = self._total or int(self._run.read_json("settings.json")["num_steps"])
        return self._total


def dropped_rows(run: Run) -> list[Event]:
    """A warning where rendering left rows out of the training."""
    path = run.directory / "ledger.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    dropped = [row for row in rows if row["status"] == "dropped" and row["example"]]
    if not dropped:
        return []
    first = dropped[0]
    text = f"{len(dropped)} of {len(rows)} rows are not trained on. The first: line {first['line']}, {first['reason']}"
    return [Event("dropped rows", text, level="warn")]


def best_step(run: Run) -> list[Event]:
    """Which step's weights the run ended with, and what should be read before they are used."""
    metrics = run.status.get("metrics")
    if not metrics:
        return []
    step, steps, loss = (metrics[name] for name in ("best_step", "steps", "validation_loss"))
    text = f"The model is that of step {step} of {steps}, where the validation loss was lowest: {loss:.3f}"
    warnings = enumerate(run.status.get("warnings", ()), start=1)
    return [Event("best step", text), *(Event(f"warning {n}", words, level="warn") for n, words in warnings)]


def step_metrics(run: Run) -> dict[int, dict[str, float | None]]:
    """The figures of each step under the API's names; None where nothing was measured. The trainer validates on all
    validation rows at once, so those of `valid` and `full_valid` are the same."""
    found: dict[int, dict[str, float | None]] = {}
    for row in run.metrics():
        values = found.setdefault(int(row["step"]), dict.fromkeys(METRIC_NAMES) | {"step": int(row["step"])})
        for part in ("train",) if row["kind"] == "train" else ("valid", "full_valid"):
            values[f"{part}_loss"] = float(row["loss"])
            values[f"{part}_mean_token_accuracy"] = row.get(ACCURACY)
        values |= _pair_figures("train" if row["kind"] == "train" else "valid", row)
    return {step: found[step] for step in sorted(found) if step > 0}


def _pair_figures(part: str, row: Mapping[str, Any]) -> dict[str, float]:
    """What a line says of pairs, under the API's names; nothing when it is not of a preference training."""
    return {f"{part}_{name}": float(row[name]) for name in PAIR_NAMES if name in row}


def metrics_csv(rows: Iterable[Mapping[str, float | None]]) -> bytes:
    """The result file: one line a step, with OpenAI's columns; after them those of pairs where there are any."""
    rows = list(rows)
    ours = [f"{part}_{name}" for part in ("train", "valid") for name in PAIR_NAMES]
    columns = [*METRIC_NAMES, *(name for name in ours if any(name in row for row in rows))]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def tokens_seen(run: Run) -> int:
    """The tokens of the rows that were trained on, each as often as it was: what OpenAI counts as trained."""
    return sum(int(row["tokens"]) for row in run.metrics() if row["kind"] == "train")
