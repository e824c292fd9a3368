"""A training from data to a proved adapter: repeatable to the bit, never "finished" in vain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.train.conftest import STEPS, adapter_bytes, losses, write_rows
from tunesmith.adapter import load_adapter
from tunesmith.errors import DataError, InputError, ModelError, RunError
from tunesmith.model import Base
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.train.loop import Interrupted
from tunesmith.train.prove import prove
from tunesmith.worker import Job, execute, prepare

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Job]
QUIET: dict[str, Any] = {"watch": lambda metric: None, "say": lambda text: None}


def test_the_same_seed_gives_the_same_adapter_to_the_bit_and_another_seed_another(
    small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    runs = [train_here(small_recipe(seed=seed), tmp_path / str(n)).run for n, seed in enumerate((5, 5, 6))]
    first, second, other = map(adapter_bytes, runs)
    assert first == second
    assert first != other
    assert losses(runs[0]) == losses(runs[1])
    for run in runs:
        assert run.status["state"] == "finished"
        assert [check["passed"] for check in run.status["proof"]] == [True] * 4
        assert losses(run)[-1] < losses(run)[0]


def test_the_validation_loss_is_measured_before_the_first_step(
    small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    run = train_here(small_recipe(), tmp_path / "run").run
    first = run.metrics()[0]
    assert (first["kind"], first["step"]) == ("validation", 0)
    assert [row["step"] for row in run.metrics() if row["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [row["step"] for row in run.metrics() if row["kind"] == "validation"] == [0, 2, 4, 6, 8]


@pytest.mark.slow
def test_the_proof_runs_in_a_fresh_process_and_finds_changed_weights(
    small_recipe: MakeRecipe, train_here: Train, tmp_path: Path, monkeypatch: Any
) -> None:
    run = train_here(small_recipe(), tmp_path / "run").run
    monkeypatch.undo()  # from here on the proof is a process of its own
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    path = run.adapter_dir / "adapter_model.safetensors"
    tensors = load_file(path)
    changed = {name: -tensor if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(changed, path, metadata={"format": "pt"})
    with pytest.raises(RunError, match="failed a check: validation loss comes out again"):
        prove(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: {k: t * float("nan") for k, t in tensors.items()}, "every adapter weight is finite"),
        (lambda tensors: {k: t * 0 for k, t in tensors.items()}, "adapter changes the model"),
        (lambda tensors: dict(list(tensors.items())[1:]), "does not fit this base"),
    ],
    ids=["not finite", "no effect", "a tensor is missing"],
)
def test_an_adapter_that_is_not_what_was_trained_fails_its_proof(
    finished: Run, proof_here: None, change: Callable[[Any], Any], words: str
) -> None:
    path = finished.adapter_dir / "adapter_model.safetensors"
    before = path.read_bytes()
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    try:
        with pytest.raises((RunError, ModelError), match=words):
            prove(finished)
    finally:
        path.write_bytes(before)


@pytest.fixture
def finished(small_recipe: MakeRecipe, train_here: Train, tmp_path: Path) -> Run:
    return train_here(small_recipe(epochs=1), tmp_path / "finished").run


def test_a_finished_run_refuses_a_second_training_and_stays_as_it_is(
    finished: Run, small_recipe: MakeRecipe, tiny: Base
) -> None:
    before = adapter_bytes(finished)
    for recipe in (small_recipe(epochs=1), small_recipe(epochs=2)):
        with pytest.raises(InputError, match="holds a finished run"):
            prepare(recipe, finished.directory, say=QUIET["say"], base=tiny)
    assert adapter_bytes(finished) == before
    assert finished.status["state"] == "finished"


def test_early_stopping_keeps_the_best_adapter(
    small_recipe: MakeRecipe, train_here: Train, tiny: Base, tiny_rows: Any, tmp_path: Path
) -> None:
    rows = tiny_rows(9)
    for row, label in zip(rows, ("login", "card", "refund") * 3, strict=True):
        row["messages"][-1]["content"] = label  # the labels are turned round: what is learned makes this loss worse
    held = write_rows(tmp_path / "held.jsonl", rows)
    recipe = small_recipe(validation=str(held), epochs=30, learning_rate=0.03, patience=2, validations_per_epoch=4)
    job = train_here(recipe, tmp_path / "run")
    validation = {row["step"]: row["loss"] for row in job.run.metrics() if row["kind"] == "validation"}
    metrics = job.run.status["metrics"]
    best = min(validation, key=lambda step: validation[step])
    assert metrics["steps"] < job.plan.settings.num_steps
    assert metrics["best_step"] == best != metrics["steps"]
    assert metrics["validation_loss"] == pytest.approx(validation[best], rel=1e-6)
    assert len([step for step in validation if step > best]) == 2


@pytest.mark.parametrize("rate", [1e30])
def test_a_loss_that_is_not_finite_fails_the_run_with_the_reason(
    small_recipe: MakeRecipe, train_here: Train, tmp_path: Path, rate: float
) -> None:
    with pytest.raises(RunError, match=r"(?i)lower learning_rate"):
        train_here(small_recipe(learning_rate=rate), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.status["state"] == "failed"
    assert "learning_rate" in run.status["reason"]
    assert not run.adapter_dir.exists()


@pytest.mark.parametrize("fault", ["broken line", "no file", "wrong targets", "too long", "long context", "no base"])
def test_bad_input_is_refused_before_anything_is_written(
    fault: str, small_recipe: MakeRecipe, tiny_rows: Any, tmp_path: Path
) -> None:
    broken = write_rows(tmp_path / "broken.jsonl", tiny_rows(5))
    broken.write_text(broken.read_text() + "{\n")
    changes: dict[str, dict[str, Any]] = {
        "broken line": {"data": str(broken)},
        "no file": {"data": str(tmp_path / "none.jsonl")},
        "wrong targets": {"targets": ["q_proj", "w_proj"]},
        "too long": {"max_length": 20},
        "long context": {"max_length": 9999},
        "no base": {"base": str(tmp_path / "nobase")},
    }
    with pytest.raises(InputError) as caught:
        prepare(small_recipe(**changes[fault]), tmp_path / "run", say=QUIET["say"])
    assert not (tmp_path / "run").exists()
    assert isinstance(caught.value, DataError) == (fault in ("broken line", "no file"))


# -- interrupted, killed, damaged -------------------------------------------------------------------------------


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    """Send this process SIGTERM once a step is done, as a scheduler would."""

    def watch(metric: dict[str, Any]) -> None:
        if (metric["kind"], metric["step"]) == ("train", step):
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


@pytest.fixture
def undisturbed(small_recipe: MakeRecipe, train_here: Train, tmp_path: Path) -> Run:
    return train_here(small_recipe(dropout=0.1), tmp_path / "undisturbed").run


def test_an_interrupted_run_goes_on_and_ends_at_the_same_bits(
    undisturbed: Run, small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for step in (3, 5):
        with pytest.raises(Interrupted):
            train_here(small_recipe(dropout=0.1), tmp_path / "run", stop_at(step))
        assert Run(tmp_path / "run").status["state"] == "interrupted"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    job = train_here(small_recipe(dropout=0.1), tmp_path / "run")
    assert job.resumed
    assert adapter_bytes(job.run) == adapter_bytes(undisturbed)
    assert losses(job.run) == losses(undisturbed)
    assert losses(job.run, "validation") == losses(undisturbed, "validation")


def test_a_damaged_newest_checkpoint_falls_back_to_the_older_and_ends_at_the_same_bits(
    undisturbed: Run, small_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train_here(small_recipe(dropout=0.1), tmp_path / "run", stop_at(5))
    run = Run(tmp_path / "run")
    newest = run.checkpoints_dir / "step-000005" / "adapter.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    train_here(small_recipe(dropout=0.1), tmp_path / "run")
    assert [path.name for path in (run.checkpoints_dir / "quarantine").iterdir()] == ["step-000005-0"]
    events = [json.loads(line) for line in (run.directory / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "resumed"] == [4]
    assert adapter_bytes(run) == adapter_bytes(undisturbed)


def test_without_out_the_interrupted_run_is_found_again(small_recipe: MakeRecipe, train_here: Train) -> None:
    with pytest.raises(Interrupted):
        train_here(small_recipe(), None, stop_at(3))
    again = prepare(small_recipe(), None, say=QUIET["say"])
    assert again.resumed
    assert not prepare(small_recipe(seed=1), None, say=QUIET["say"]).resumed


def test_another_recipe_or_other_data_does_not_go_on_in_the_same_directory(
    small_recipe: MakeRecipe, train_here: Train, tiny_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train_here(small_recipe(), tmp_path / "run", stop_at(3))
    with pytest.raises(InputError, match="another recipe or other data"):
        prepare(small_recipe(rank=8), tmp_path / "run", say=QUIET["say"])
    tiny_file.write_text(tiny_file.read_text().replace("case 7.", "case seven."))
    with pytest.raises(InputError, match="another recipe or other data"):
        prepare(small_recipe(), tmp_path / "run", say=QUIET["say"])


def test_two_processes_do_not_train_one_run(small_recipe: MakeRecipe, tmp_path: Path) -> None:
    import fcntl

    job = prepare(small_recipe(), tmp_path / "run", say=QUIET["say"])
    with (job.run.directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another process is training"):
            execute(job, **QUIET)


@pytest.mark.slow
def test_sigterm_to_the_command_saves_a_checkpoint_and_exits_75(
    tiny_base: Path, tiny_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", "from tunesmith.cli.main import main; main()", "train", str(tiny_file)]
    command += ["--base", str(tiny_base), "--out", str(out), "--epochs", "500", "--set", "threads=1"]
    command += ["--set", "patience=null", "--set", "precision=float32", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    start = time.monotonic()
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert time.monotonic() - start < 20
    assert "The same command goes on from there" in stderr
    assert "Traceback" not in stderr
    run = Run(out)
    assert run.status["state"] == "interrupted"
    done = max(row["step"] for row in run.metrics())
    assert (run.checkpoints_dir / f"step-{done:06d}").is_dir()


def test_the_published_adapter_is_the_one_of_the_metrics(finished: Run, tiny: Base) -> None:
    from tunesmith.adapter import detach
    from tunesmith.facts import weights_sha256

    assert finished.status["adapter_sha256"] == weights_sha256(finished.adapter_dir)
    detach(load_adapter(tiny, finished.adapter_dir))


def test_attention_dropout_that_is_not_applied_is_said(small_recipe: Callable[..., Recipe], tiny: Base) -> None:
    def warnings() -> list[str]:
        return prepare(small_recipe(), None, say=lambda text: None, base=tiny).plan.warnings

    assert not warnings()
    tiny.model.config.attention_dropout = 0.1
    assert "attention dropout of 0.1; it is not applied" in warnings()[0]
