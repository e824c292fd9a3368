"""Experiment trackers: each metric line of a run goes to TensorBoard, MLflow, Weights & Biases or Trackio as well.

Not here: metrics.jsonl, which is the truth; a tracker that fails is switched off and the training goes on. Used by
train.run (are the packages there?) and the worker. Everything stays on this machine unless the user's environment says
otherwise, and the packages' own telemetry is off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tunesmith.errors import InputError
from tunesmith.runs import Run

Watch = Callable[[dict[str, Any]], None]
PROJECT = "tunesmith"


class Tracker(Protocol):
    """What a tracker does. Opened again for the same run, it goes on where it was."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files in the run's `tensorboard/`: `tensorboard --logdir RUN`."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.directory / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # or a kill takes two minutes of them along

    def close(self, finished: bool) -> None:
        self._writer.close()


class MLflow:
    """A run in the server at MLFLOW_TRACKING_URI, or in the run's `mlflow.db`:
    `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that is gone holds a step up for seconds, not for the library's minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
        local = f"sqlite:///{run.directory.resolve()}/mlflow.db"
        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        experiment = self._client.get_experiment_by_name(PROJECT)
        home = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        found = self._client.search_runs([home], f"attributes.run_name = '{run.id}'")
        self._id = found[0].info.run_id if found else self._client.create_run(home, run_name=run.id).info.run_id
        self._client.update_run(self._id, "RUNNING")
        self._client.log_batch(self._id, params=[Param(key, str(value)) for key, value in run.recipe.items()])

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


class Wandb:
    """Offline files in the run's `wandb/`, which `wandb sync` sends; WANDB_MODE=online sends them at once. The
    package's own variables (WANDB_PROJECT, WANDB_NAME, WANDB_ENTITY, WANDB_TAGS) say where."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        quiet = wandb.Settings(console="off", disable_git=True, quiet=True, x_disable_stats=True)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=os.environ.get("WANDB_NAME", run.id),
            dir=str(run.directory),
            config=run.recipe,
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            settings=quiet,
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Trackio:
    """Trackio's own database, at TRACKIO_DIR or in the user's cache: `trackio show --project tunesmith`."""

    def __init__(self, run: Run) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):  # stdout may carry our JSON
            self._run: Any = trackio.init(
                project=PROJECT,
                name=run.id,
                config=run.recipe,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self, finished: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


# By the name that recipes use, which is also the extra's: the packages it needs, and how it is opened.
TRACKERS: dict[str, tuple[tuple[str, ...], Callable[[Run], Tracker]]] = {
    "tensorboard": (("tensorboard",), TensorBoard),
    "mlflow": (("mlflow", "alembic"), MLflow),
    "wandb": (("wandb",), Wandb),
    "trackio": (("trackio",), Trackio),
}


def require(names: Sequence[str]) -> None:
    """Raises InputError when a package that the trackers need is not installed."""
    lacking = [name for name in names if not all(importlib.util.find_spec(package) for package in TRACKERS[name][0])]
    if lacking:
        raise InputError(
            f"The packages of these trackers are not installed: {', '.join(lacking)}.",
            f"Install them: pip install 'tunesmith[{','.join(lacking)}]', or take them out of the recipe.",
        )


@contextlib.contextmanager
def tracking(run: Run, names: Sequence[str], *, watch: Watch, say: Callable[[str], None]) -> Iterator[Watch]:
    """Gives a watch that hands every line on to `watch` and to the trackers.

    A resumed run does some steps again, to the same bits: what metrics.jsonl had before is not tracked twice. The
    trackers hear "finished" only when the block ends without an error.
    """
    tracked = {(row["kind"], row["step"]) for row in run.metrics()}
    opened: dict[str, Tracker] = {}

    @contextlib.contextmanager
    def switched_off_on_error(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            opened.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            run.event("tracker_off", tracker=name, reason=reason)
            say(f"The tracker {name} failed and is off; metrics.jsonl goes on. {reason.splitlines()[0][:150]}")

    def tell(metric: dict[str, Any]) -> None:
        watch(metric)
        if (metric["kind"], metric["step"]) in tracked:
            return
        values = {f"{metric['kind']}/{name}": value for name, value in metric.items() if _is_figure(name, value)}
        for name, tracker in list(opened.items()):
            with switched_off_on_error(name):
                tracker.log(values, metric["step"])

    for name in names:
        with switched_off_on_error(name):
            opened[name] = TRACKERS[name][1](run)
    finished = False
    try:
        yield tell
        finished = True
    finally:
        for name, tracker in list(opened.items()):
            with switched_off_on_error(name):
                tracker.close(finished)


def _is_figure(name: str, value: Any) -> bool:
    return name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
