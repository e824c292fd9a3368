"""What becomes of a job whose files, worker, server or machine fail, with a stub in the trainer's place."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.job_host import BASES, stub_setup
from tests.job_server import kill_worker, upload, working
from tests.postgres import postgres_url as postgres_url
from tunesmith.database import transaction
from tunesmith.hardware import detect
from tunesmith.jobs.folder import JobFolder
from tunesmith.jobs.process import end_leftover, is_free
from tunesmith.recipe import read_recipe, recipe_from
from tunesmith.serve.records.events import list_checkpoints, list_events
from tunesmith.serve.records.files import FILES, find_file
from tunesmith.serve.records.jobs import (
    ENDED,
    JOBS,
    Job,
    JobOrder,
    cancel_job,
    create_job,
    find_job,
    pause_job,
    resume_job,
)
from tunesmith.serve.records.models import find_model, list_models
from tunesmith.serve.records.queue import StaleClaimError, claim, look
from tunesmith.train.settings import settle

ROOT = Path(__file__).resolve().parents[1]
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
PAIR = {
    "input": {"messages": ROW["messages"][:1]},
    "preferred_output": ROW["messages"][1:],
    "non_preferred_output": [{"role": "assistant", "content": "no"}],
}
OWNER = "ann"


def order_job(data: bytes | list[Any], owner: str = OWNER, **values: Any) -> str:
    known: dict[str, Any] = {"model": "tiny", "validation_file": None, "method": "supervised", "asked": {}, "seed": 1}
    known |= {"suffix": None, "labels": None, "integrations": None, "request_sha256": "body"}
    known |= {"training_file": upload(data, owner=owner), **values}
    return create_job(JobOrder(**known), owner=owner).id


def new_job(owner: str = OWNER, **values: Any) -> str:
    return order_job([ROW] * 12, owner, **values)


def job_of(job_id: str, owner: str = OWNER) -> Job:
    job = find_job(job_id, owner=owner)
    assert job
    return job


def wait_until(job_id: str, wanted: Callable[[Job], bool], owner: str = OWNER, timeout_s: float = 60) -> Job:
    end = time.monotonic() + timeout_s
    while not wanted(job := job_of(job_id, owner)):
        assert job.state not in ENDED, (job.state, job.error)
        assert time.monotonic() < end, (job.state, told(job_id, owner))
        time.sleep(0.02)
    return job


def wait_for(job_id: str, *states: str, owner: str = OWNER) -> Job:
    return wait_until(job_id, lambda job: job.state in states, owner)


def wait_for_step(job_id: str, step: int) -> None:
    wait_until(job_id, lambda job: any(text.startswith(f"Step {step}/") for text in told(job_id)))


def told(job_id: str, owner: str = OWNER) -> list[str]:
    """Oldest first."""
    events = list_events(job_id, owner=owner, limit=10_000)
    return [event.message for event in reversed(events or [])]


def adapter_bytes(job_id: str) -> bytes:
    (found,) = [made for made in list_models(OWNER) if made.job == job_id and made.step is None]
    return (found.folder / "adapter_model.safetensors").read_bytes()[-4:]


def weight_after(steps: int) -> bytes:
    """What an undisturbed training of the stub ends with."""
    weight = b"seed"
    for _ in range(steps):
        weight = hashlib.sha256(weight).digest()[:4]
    return weight


def test_a_job_goes_through_its_states_and_tells_each_thing_once() -> None:
    job_id = new_job(suffix="a/b", asked={"lora_rank": 8, "max_length": "auto", "learning_rate_multiplier": 2})
    with working(stub_setup(4, 0)):
        job = wait_for(job_id, "succeeded")
    name = f"ft:tiny:ann:a-b:{job_id[6:14]}"
    checkpoints = [text for text in told(job_id) if text.startswith("Checkpoint")]  # each as soon as it is seen
    assert checkpoints == ["Checkpoint created at step 2", "Checkpoint created at step 4"]
    assert [text for text in told(job_id) if text not in checkpoints] == [
        f"Created fine-tuning job: {job_id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/4: training loss=1.00",
        "Step 2/4: training loss=0.50, validation loss=1.00",
        "Step 3/4: training loss=0.33",
        "Step 4/4: training loss=0.25, validation loss=0.50",
        f"New fine-tuned model created: {name}",
        "The job has successfully completed",
    ]
    assert job.fine_tuned_model == name and job.trained_tokens == 40 and job.attempt == 1
    assert job.resolved == {
        "n_epochs": 4, "batch_size": 16, "learning_rate_multiplier": 2, "lora_rank": 8, "max_length": 512,
    }  # fmt: skip
    assert adapter_bytes(job_id) == weight_after(4)
    step_2 = find_model(f"{name}:ckpt-step-2", owner=OWNER)
    assert step_2 and step_2.step == 2
    assert (step_2.folder / "adapter_model.safetensors").read_bytes()[-4:] == weight_after(2)
    assert (step_2.folder / "adapter_config.json").is_file()
    assert job.result_files
    csv = find_file(job.result_files[0], owner=OWNER)
    assert csv and csv.path.read_text().splitlines()[:3] == [
        "step,train_loss,train_mean_token_accuracy,valid_loss,valid_mean_token_accuracy,full_valid_loss,"
        "full_valid_mean_token_accuracy",
        "1,1.0,0.0,,,,",
        "2,0.5,0.5,1.0,0.5,1.0,0.5",
    ]
    assert list_models("ben") == []
    recipe, base = read_recipe(JobFolder.of(job).recipe), BASES["tiny"]
    assert (recipe["epochs"], recipe["seed"], recipe["precision"], recipe["rank"]) == (4, 1, base.precision, 8)
    plain, _ = settle(recipe_from({"data": "x"}, source=""), num_rows=11, facts=base.facts, hardware=detect())
    assert recipe["learning_rate"] == pytest.approx(2 * plain.learning_rate)


def test_a_paused_job_frees_the_machine_and_goes_on_where_it_was() -> None:
    first = new_job()
    with working(stub_setup(30, 0.03)):
        wait_for_step(first, 3)
        paused = pause_job(first, owner=OWNER)
        assert paused and paused.state == "pausing"
        wait_for(first, "paused")
        second = new_job()
        wait_for(second, "succeeded")
        assert job_of(first).state == "paused"
        resume_job(first, owner=OWNER)
        job = wait_for(first, "succeeded")
    assert job.attempt == 1 and adapter_bytes(first) == weight_after(30)
    (resumed,) = [text for text in told(first) if "resumed from step" in text]
    assert int(resumed.split()[-1]) >= 3
    steps = [text.split("/")[0] for text in told(first) if text.startswith("Step")]
    assert steps == [f"Step {n}" for n in range(1, 31)]


def test_a_checkpoint_can_be_asked_while_its_job_trains_and_the_last_three_stay() -> None:
    job_id = new_job()
    with working(stub_setup(40, 0.05)):
        wait_until(job_id, lambda job: bool(list_checkpoints(job_id, owner=OWNER)))
        first = list_checkpoints(job_id, owner=OWNER)[-1]
        assert job_of(job_id).state == "running" and first.step == 8 and find_model(first.model, owner=OWNER)
        wait_for(job_id, "succeeded")
    found = list_checkpoints(job_id, owner=OWNER)
    steps = [one.step for one in found]
    assert steps == [40, 32, 24] and find_model(first.model, owner=OWNER) is None
    assert found[0].metrics["full_valid_loss"] == 2 / steps[0] and found[0].metrics["valid_mean_token_accuracy"] == 0.5
    for one in found:
        made = find_model(one.model, owner=OWNER)
        assert made and made.step == one.step and (made.folder / "adapter_config.json").is_file()
        assert (made.folder / "adapter_model.safetensors").read_bytes()[-4:] == weight_after(one.step)
    assert {made.name for made in list_models(OWNER) if made.step} == {one.model for one in found}
    folders = JobFolder.of(job_of(job_id)).path / "checkpoints"
    assert sorted(path.name for path in folders.iterdir()) == ["step-24", "step-32", "step-40"]


def test_a_cancelled_job_ends_its_worker_and_publishes_no_model() -> None:
    job_id = new_job()
    with working(stub_setup(1000, 0.03)):
        wait_for_step(job_id, 2)
        cancelled = cancel_job(job_id, owner=OWNER)
        assert cancelled and cancelled.state == "cancelled"
        other = new_job()
        pause_job(other, owner=OWNER)
        wait_until_free(job_id)
    assert job_of(job_id).state == "cancelled" and all(made.step for made in list_models(OWNER))


def wait_until_free(job_id: str) -> None:
    lock = JobFolder.of(job_of(job_id)).lock
    end = time.monotonic() + 30
    with lock.open("r+") as file:
        while not is_free(file.fileno()):
            assert time.monotonic() < end, "the worker still lives"
            time.sleep(0.02)


def test_a_stopped_server_gives_its_job_back_and_the_next_goes_on() -> None:
    job_id = new_job()
    setup = stub_setup(50, 0.03)
    with working(setup):
        wait_for_step(job_id, 3)
    assert job_of(job_id).state == "queued" and job_of(job_id).holder is None
    with working(setup):
        job = wait_for(job_id, "succeeded")
    assert adapter_bytes(job_id) == weight_after(50) and job.attempt == 1
    assert any("resumed from step" in text for text in told(job_id))


def test_a_worker_that_dies_is_started_again_three_times() -> None:
    job_id = new_job()
    with working(stub_setup(100, 0, mishap="crash")):
        job = wait_for(job_id, "failed")
    assert job.attempt == 3 and job.error and job.error["code"] == "training_crashed"
    assert "ended 3 times (last: by signal 9)" in job.error["message"]
    texts = told(job_id)
    assert "Fine-tuning job restarted from step 2 (attempt 2)" in texts
    assert "Fine-tuning job restarted from step 4 (attempt 3)" in texts
    assert texts[-1].startswith("The job failed: ") and all(made.step for made in list_models(OWNER))


@pytest.mark.parametrize(
    ("mishap", "code", "words"),
    [
        ("fail", "training_failed", "The loss is above twice its recent median."),
        ("refuse", "training_refused", "No training row is left: all are too long."),
    ],
)
def test_what_would_fail_again_is_not_tried_again(mishap: str, code: str, words: str) -> None:
    job_id = new_job()
    with working(stub_setup(100, 0, mishap=mishap)):
        job = wait_for(job_id, "failed")
    assert job.error == {"code": code, "message": words, "param": None} and job.attempt == 1


def test_a_full_disk_pauses_the_job() -> None:
    job_id = new_job()
    with working(stub_setup(10, 0, mishap="full")):
        wait_for(job_id, "paused")
    assert told(job_id)[-1] == "The job was paused: step-4 cannot be written: No space left on device. Free 1 MB there."
    resume_job(job_id, owner=OWNER)
    with working(stub_setup(10, 0)):
        wait_for(job_id, "succeeded")
    assert adapter_bytes(job_id) == weight_after(10)


def test_a_worker_that_was_left_frozen_is_ended_before_the_next() -> None:
    job_id = new_job()
    folder = JobFolder.of(job_of(job_id))
    folder.path.mkdir(parents=True)
    command = [sys.executable, "-m", "tunesmith.jobs.launch", str(folder.lock), str(os.getpid()), "/bin/sleep", "60"]
    left = subprocess.Popen(command, start_new_session=True)
    end = time.monotonic() + 30
    while not (folder.lock.is_file() and folder.lock.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    left.send_signal(signal.SIGSTOP)
    end_leftover(folder, grace_s=0.1)
    assert left.wait(10) == -signal.SIGKILL
    wait_until_free(job_id)


def test_a_model_that_is_served_otherwise_is_not_published() -> None:
    job_id = new_job()
    setup = replace(stub_setup(2, 0), parity=lambda job, run: "validation row 1: the served model answers 'x'")
    with working(setup):
        job = wait_for(job_id, "failed")
    assert job.error and job.error["code"] == "serving_differs" and "validation row 1" in job.error["message"]
    assert list_models(OWNER) == [] and job.fine_tuned_model is None


def lines(*rows: object) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (lines(*[ROW] * 7), "invalid_n_examples", ["Training file has 7 example(s), but must have at least 10"]),
        (
            lines(*[ROW] * 3, "", {"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}, *[ROW] * 9, "{"),
            "invalid_training_file",
            ["invalid training file (2 problems)", "Example 4 (line 5", "message 2", "Example 14 (line 15"],
        ),
        (
            lines(*[PAIR] * 12),
            "invalid_training_file",
            ["is in the fine-tune-preference format, but the job is not using 'dpo'", "(provided method=supervised)"],
        ),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_by_example(data: bytes, code: str, words: list[str]) -> None:
    job_id = order_job(data)
    with working(stub_setup(2, 0)):
        job = wait_for(job_id, "failed")
    assert job.error and job.error["code"] == code and job.error["param"] == "training_file"
    for word in words:
        assert word in job.error["message"]
    assert job.attempt == 0


def test_a_job_on_preferences_takes_pairs_and_refuses_single_answers() -> None:
    asked = {"beta": 0.25, "learning_rate_multiplier": 2.0}
    plain, wrong = order_job([PAIR] * 12, method="dpo"), order_job([ROW] * 12, method="dpo")
    right = order_job([PAIR] * 12, method="dpo", asked=asked)
    with working(stub_setup(2, 0)):
        failed, job, other = wait_for(wrong, "failed"), wait_for(right, "succeeded"), wait_for(plain, "succeeded")
    assert failed.error and failed.error["code"] == "invalid_training_file"
    assert "is in the fine-tune-chat format, but the job is not using 'supervised'" in failed.error["message"]
    assert "(provided method=dpo)" in failed.error["message"]
    assert job.resolved == {"n_epochs": 2, "batch_size": 16, "learning_rate_multiplier": 2.0, "beta": 0.25}
    recipes = [recipe_from(read_recipe(JobFolder.of(one).recipe), source="test") for one in (job, other)]
    assert [(recipe.method, recipe.beta) for recipe in recipes] == [("dpo", 0.25), ("dpo", 0.1)]
    assert recipes[0].learning_rate == pytest.approx(2 * float(recipes[1].learning_rate))


def test_a_file_may_be_deleted_once_it_was_looked_at_but_not_before() -> None:
    early = new_job()
    delete_file(job_of(early).training_file)
    late = new_job()
    with working(stub_setup(20, 0.03)):
        job = wait_for(early, "failed")
        wait_for_step(late, 1)
        delete_file(job_of(late).training_file)
        wait_for(late, "succeeded")
    assert job.error and "no longer there" in job.error["message"]


def delete_file(file_id: str) -> None:
    file = find_file(file_id, owner=OWNER)
    assert file
    with transaction() as connection:
        connection.execute(FILES.delete().where(FILES.c.id == file_id))
    file.path.unlink()


def test_an_integration_reaches_the_trainer(tmp_path: Path) -> None:
    from tunesmith.jobs.training import _environment

    wandb: Mapping[str, Any] = {"project": "cards", "entity": "team", "tags": ["a", "b"]}
    job = job_of(new_job(integrations=[{"type": "wandb", "wandb": wandb}]))
    assert _environment(job) == {"WANDB_PROJECT": "cards", "WANDB_ENTITY": "team", "WANDB_TAGS": "a,b"}


# -- several servers on one queue --------------------------------------------------------------------------------


@pytest.fixture
def postgres(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE", request.getfixturevalue("postgres_url"))
    with transaction() as connection:
        connection.execute(JOBS.delete())


@pytest.mark.slow
def test_two_servers_share_a_queue_and_take_over_from_one_that_is_gone(postgres: None) -> None:
    lost, *rest = [new_job() for _ in range(5)]
    gone = claim("gone", states=("validating_files",))  # a third server, which never says anything again
    assert gone and gone.job.id == lost
    setup = replace(stub_setup(20, 0.02), lease_s=1.5)
    with working(setup), working(setup):
        for name in [*rest, lost]:
            wait_for(name, "succeeded")
    for name in (lost, *rest):
        texts = told(name)
        assert len(texts) == len(set(texts)) and adapter_bytes(name) == weight_after(20)
    with pytest.raises(StaleClaimError):
        look(gone)


# -- kill -9 -----------------------------------------------------------------------------------------------------


class Killer:
    """Starts a host, and kills it, a worker or both."""

    def __init__(self, steps: int, step_s: float) -> None:
        self.command = [sys.executable, "-m", "tests.job_host", str(steps), str(step_s)]
        self.start()

    def start(self) -> None:
        self.host = subprocess.Popen(self.command, cwd=ROOT, start_new_session=True)

    def kill(self, target: str, jobs: list[Job]) -> bool:
        """Whether it met anyone."""
        hit = False
        if target in ("worker", "both"):
            for job in jobs:
                hit |= kill_worker(JobFolder.of(job).lock)
        if target in ("server", "both"):
            self.host.kill()
            self.host.wait()
            self.start()
            hit = True
        return hit


def kill_often(kills: int, *, jobs: int, steps: int, seed: int) -> None:
    moments = random.Random(seed)
    ids = [new_job() for _ in range(jobs)]
    killer = Killer(steps, 0.02)
    try:
        hits = 0
        end = time.monotonic() + 60 + 10 * kills
        while hits < kills and any(job_of(name).state not in ENDED for name in ids):
            assert time.monotonic() < end
            time.sleep(moments.uniform(0.05, 1.0))
            running = [job_of(name) for name in ids if job_of(name).state == "running"]
            if running:
                hits += killer.kill(moments.choice(["server", "worker", "both"]), running)
        for name in ids:
            wait_for(name, "succeeded")
    finally:
        killer.host.kill()
        killer.host.wait()
    assert hits >= kills, f"only {hits} kills met anyone"
    for name in ids:
        assert adapter_bytes(name) == weight_after(steps)
        texts = told(name)
        assert len(texts) == len(set(texts)), "something was told twice"
        assert [t.split("/")[0] for t in texts if t.startswith("Step")] == [f"Step {n}" for n in range(1, steps + 1)]
        assert not (JobFolder.of(job_of(name)).run_dir / "trained_twice").exists()
        wait_until_free(name)


@pytest.mark.slow
def test_two_kills_lose_nothing() -> None:
    kill_often(2, jobs=1, steps=60, seed=0)


@pytest.mark.slow
def test_forty_kills_lose_nothing() -> None:
    kill_often(40, jobs=8, steps=150, seed=1)
