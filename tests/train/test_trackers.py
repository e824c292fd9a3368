"""Trackers get every line once, resumed or not; one that fails or is not installed never breaks a training midway."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.train.conftest import STEPS
from tunesmith.errors import InputError
from tunesmith.recipe import Recipe
from tunesmith.runs import Run, create_run
from tunesmith.train import trackers
from tunesmith.train.loop import Interrupted
from tunesmith.worker import Job, prepare

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Job]
VALIDATED = [0, 2, 4, 6, 8]


class Recorder:
    """A tracker that writes what it is told into the run's `recorded.jsonl`; broken in the way the run's name says."""

    def __init__(self, run: Run) -> None:
        self.file = run.directory / "recorded.jsonl"
        self.fault = run.directory.name
        if self.fault == "opening":
            raise OSError("no route to host")

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fault == "logging" and step == 3:
            raise ConnectionError("the server is gone")
        self._write({"step": step, **values})

    def close(self, finished: bool) -> None:
        if self.fault == "closing":
            raise TimeoutError("nobody there")
        self._write({"finished": finished})

    def _write(self, row: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ((), Recorder))


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "recorded.jsonl").read_text().splitlines()]


def steps_of(rows: list[dict[str, Any]], name: str) -> list[int]:
    return [row["step"] for row in rows if name in row]


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def watch(metric: dict[str, Any]) -> None:
        if (metric["kind"], metric["step"]) == ("train", step):
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def test_a_tracker_gets_every_figure_of_every_line_and_hears_the_end(
    recorder: None, small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    run = train_here(small_recipe(trackers=["wandb"]), tmp_path / "run").run
    *rows, last = recorded(run.directory)
    assert last == {"finished": True}
    assert steps_of(rows, "train/loss") == list(range(1, STEPS + 1))
    assert steps_of(rows, "validation/loss") == VALIDATED
    (line,) = [row for row in run.metrics() if (row["kind"], row["step"]) == ("train", 5)]
    (row,) = [row for row in rows if row["step"] == 5]
    assert row == {"step": 5} | {f"train/{k}": v for k, v in line.items() if k not in ("kind", "step", "rows")}


def test_a_resumed_run_tracks_no_step_twice(
    recorder: None, small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    recipe = small_recipe(trackers=["wandb"])
    with pytest.raises(Interrupted):
        train_here(recipe, tmp_path / "run", stop_at(5))
    assert recorded(tmp_path / "run")[-1] == {"finished": False}
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    (newest / "state.pt").write_bytes(b"torn")  # so that it goes on from an older one, and does steps again
    train_here(recipe, tmp_path / "run")
    rows = recorded(tmp_path / "run")
    assert steps_of(rows, "train/loss") == list(range(1, STEPS + 1))
    assert steps_of(rows, "validation/loss") == VALIDATED


@pytest.mark.parametrize("fault", ["opening", "logging", "closing"])
def test_a_tracker_that_fails_is_switched_off_once_and_the_run_finishes(
    fault: str, recorder: None, small_recipe: MakeRecipe, proof_here: None, tmp_path: Path
) -> None:
    from tunesmith.worker import execute

    said: list[str] = []
    job = prepare(small_recipe(trackers=["wandb"]), tmp_path / fault, say=said.append)
    execute(job, watch=lambda metric: None, say=said.append)
    assert job.run.status["state"] == "finished"
    assert len([text for text in said if "The tracker wandb failed and is off" in text]) == 1
    events = [json.loads(line) for line in (job.run.directory / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "tracker_off"]
    assert event["tracker"] == "wandb"
    assert len([row for row in job.run.metrics() if row["kind"] == "train"]) == STEPS
    if fault == "logging":
        assert max(steps_of(recorded(job.run.directory), "train/loss")) == 2


def test_packages_that_are_missing_are_named_at_once_before_anything_is_written(
    small_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(trackers.TRACKERS, "trackio", ((), Recorder))
    with pytest.raises(InputError, match=r"mlflow, wandb\. .* pip install 'tunesmith\[mlflow,wandb\]'"):
        prepare(small_recipe(trackers=["mlflow", "trackio", "wandb"]), tmp_path / "run", say=lambda text: None)
    assert not (tmp_path / "run").exists()


def test_recipes_and_extras_know_the_same_trackers(small_recipe: MakeRecipe) -> None:
    import tomllib

    names = get_args(get_args(Recipe.model_fields["trackers"].annotation)[0])
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(names) == set(trackers.TRACKERS)
    assert set(names) <= set(project["optional-dependencies"])
    with pytest.raises(InputError, match="'trackers' is 'tensorbord'"):
        small_recipe(trackers=["tensorbord"])


# -- the real packages, where they are installed ------------------------------------------------------------------


@pytest.fixture
def tracked_run(tmp_path: Path) -> Callable[[str], Run]:
    """`tracked_run(name)`: a run whose tracker saw steps 1 to 5, was interrupted, and saw 4 to 8 after the resume."""

    def make(name: str) -> Run:
        for package in trackers.TRACKERS[name][0]:
            pytest.importorskip(package)
        run = create_run(tmp_path / "run", recipe={"base": "b", "rank": 4, "trackers": [name]})
        with pytest.raises(Interrupted):
            track(run, name, range(1, 6), interrupted=True)
        track(run, name, range(4, 9))
        assert "tracker_off" not in (run.directory / "events.jsonl").read_text()
        return run

    return make


def track(run: Run, name: str, steps: range, *, interrupted: bool = False) -> None:
    with trackers.tracking(run, [name], watch=lambda metric: None, say=print) as tell:
        for step in steps:
            for kind in ("train", "validation"):
                metric = {"kind": kind, "step": step, "loss": 1 / step, "best": True, "rows": "ab12"}
                run.metric(**metric)
                tell(metric)
        if interrupted:
            raise Interrupted


ALL_STEPS = list(range(1, 9))


def test_tensorboard(tracked_run: Callable[[str], Run]) -> None:
    run = tracked_run("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.directory / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "validation/loss"}
    for name in ("train/loss", "validation/loss"):
        assert [event.step for event in found.Scalars(name)] == ALL_STEPS


def test_mlflow(tracked_run: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = tracked_run("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.directory}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("tunesmith").experiment_id])
    assert (found.info.run_name, found.info.status) == (run.id, "FINISHED")
    assert found.data.params["rank"] == "4"
    for name in ("train/loss", "validation/loss"):
        assert [metric.step for metric in client.get_metric_history(found.info.run_id, name)] == ALL_STEPS
    assert {path.name for path in tmp_path.iterdir()} == {"run", "tunesmith_home"}  # nothing beside the run


def test_wandb(tracked_run: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = tracked_run("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    steps = []
    for path in sorted((run.directory / "wandb").glob(f"offline-run-*-{run.id}/*.wandb")):
        for content in wandb_records(path.read_bytes()):
            history = Record.FromString(content).history
            names = {".".join(item.nested_key) or item.key for item in history.item}
            steps += [history.step.num] * ({"train/loss", "validation/loss"} <= names)
    assert steps == ALL_STEPS


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes, each part with one of its own."""
    at, record = 7, b""
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_trackio(tracked_run: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tracked_run("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("tunesmith", run.id)
    for name in ("train/loss", "validation/loss"):
        assert [row["step"] for row in rows if name in row] == ALL_STEPS
