"""Jobs from the HTTP API to an adapter: the real trainer on a tiny model, its losses, kills, pauses and refusals."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.job_server import SMALL, TINY, job_server, kill_worker, messages_of, trainable, upload, wait_for
from tests.train.test_preference import make_pairs
from tunesmith.chat import Message
from tunesmith.jobs.dispatcher import Setup
from tunesmith.jobs.folder import JobFolder
from tunesmith.jobs.parity import Answer, check_parity, served_by
from tunesmith.jobs.process import train_command
from tunesmith.runs import Run
from tunesmith.sampling import Sampling
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records.files import find_file
from tunesmith.serve.records.jobs import find_job
from tunesmith.serve.records.models import find_model
from tunesmith.serve.reply import Ask, Choice


@pytest.fixture(scope="session")
def plain(tiny_base: Path) -> ServedModels:
    return ServedModels.load({TINY: str(tiny_base)}, precision="float32")


def create(client: openai.OpenAI, file: str, **options: Any) -> Any:
    settings: Any = SMALL | options.pop("hyperparameters", {})
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": settings}}
    return client.fine_tuning.jobs.create(**{"model": TINY, "training_file": file, "method": method, **options})


def quick_command(folder: JobFolder) -> list[str]:
    """The real trainer in a process of its own; only the proof's process is saved."""
    command = train_command(folder)
    place = command.index("tunesmith")
    return [*command[:place], "tests.quick_trainer", *command[place + 2 :]]


@pytest.mark.parametrize("command", [quick_command, pytest.param(train_command, marks=pytest.mark.slow)])
def test_a_job_becomes_a_model(
    plain: ServedModels, tiny_base: Path, tiny_rows: Callable[[int], Any], tunesmith_home: Path, command: Any
) -> None:
    serve = served_by(plain)
    setup = Setup(trainable(tiny_base), partial(check_parity, serve=serve), poll_s=0.05, command=command)
    with job_server(plain, setup) as client:
        job = create(client, upload(tiny_rows(24)), suffix="My cards!", seed=7, metadata={"team": "support"})
        assert job.status == "validating_files" and job.hyperparameters.batch_size == "auto"
        job = wait_for(client, job.id)
        messages = messages_of(client, job.id)
        assert job.status == "succeeded", (job.error, messages)
        short = job.id.removeprefix("ftjob-")[:8]
        name = f"ft:tiny:local:My-cards-:{short}"
        assert job.fine_tuned_model == name and job.finished_at and job.trained_tokens > 0
        assert job.hyperparameters.n_epochs == 2 and job.hyperparameters.batch_size == 16
        assert messages[:5] == [
            f"Created fine-tuning job: {job.id}",
            f"Validating training file: {job.training_file}",
            "Files validated, moving job to queued state",
            "Fine-tuning job started",
            messages[4],
        ]
        assert messages[4].startswith("Step 1/4: training loss=")
        assert messages[-2:] == [f"New fine-tuned model created: {name}", "The job has successfully completed"]
        assert sum(message.startswith("Step") for message in messages) == 4
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
        assert [one.step_number for one in checkpoints] == [4, 2], "the ends of the epochs"
        assert checkpoints[0].metrics.full_valid_loss is not None
        assert 0 <= (checkpoints[0].metrics.full_valid_mean_token_accuracy or -1) <= 1
        rows = list(csv.DictReader(io.StringIO(text_of_file(job.result_files[0]))))
        assert [row["step"] for row in rows] == ["1", "2", "3", "4"] and all(row["train_loss"] for row in rows)
        assert all(0 <= float(row["train_mean_token_accuracy"]) <= 1 for row in rows)
        answers = ServedModels.load(
            {model: str(made_folder(model)) for model in (name, checkpoints[1].fine_tuned_model_checkpoint)},
            precision="float32",
        )
        assert [served.adapter_sha256 is not None for served in answers] == [True, True]
    run = Run(tunesmith_home / "jobs" / job.id / "run")
    assert run.status["state"] == "finished" and run.recipe["seed"] == 7
    job_record = find_job(job.id, owner="local")
    assert job_record
    reason = check_parity(job_record, run, serve=lambda run: without_adapter(plain))
    assert reason and ("log-probability" in reason or "the served model answers" in reason)
    assert check_parity(job_record, run, serve=serve) is None
    reason = check_parity(job_record, run, serve=lambda run: another_token(serve(run)))
    assert reason and reason.startswith("validation row 1: the served model answers ")
    reason = check_parity(job_record, run, serve=lambda run: another_prompt(plain))
    assert reason == "validation row 1: the served prompt has 1 tokens, the trainer's 98"


@pytest.mark.slow
def test_a_job_on_preferences_becomes_a_model_that_prefers_them(
    plain: ServedModels, tiny_base: Path, tunesmith_home: Path
) -> None:
    setup = Setup(trainable(tiny_base), partial(check_parity, serve=served_by(plain)), poll_s=0.05)
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": SMALL | {"beta": 0.2}}}
    with job_server(plain, setup) as client:
        job = create(client, upload(make_pairs(24)), method=method, seed=7)
        job = wait_for(client, job.id)
        messages = messages_of(client, job.id)
        assert job.status == "succeeded", (job.error, messages)
        assert job.method.type == "dpo" and job.method.dpo.hyperparameters.beta == 0.2
        assert messages[4].startswith("Step 1/4: training loss=0.69")
        told: Any = client.fine_tuning.jobs.list_events(job.id, limit=100).data
        assert {"train_margin", "train_pair_accuracy"} <= next(one.data for one in told if one.type == "metrics").keys()
        rows = list(csv.DictReader(io.StringIO(text_of_file(job.result_files[0]))))
        assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
        assert float(rows[-1]["valid_pair_accuracy"]) == 1 and float(rows[-1]["valid_margin"]) > 0
        (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
        metrics: Any = checkpoint.metrics.to_dict()
        assert metrics["valid_margin"] > 0
        assert made_folder(job.fine_tuned_model).is_dir()
    run = Run(tunesmith_home / "jobs" / job.id / "run")
    assert run.recipe["method"] == "dpo" and run.status["state"] == "finished"


@contextmanager
def without_adapter(plain: ServedModels) -> Iterator[Answer]:
    """A server that forgot the adapter."""

    def answer(messages: Sequence[Message]) -> Choice:
        ask = Ask(tuple(messages), max_new_tokens=24, sampling=Sampling(top_logprobs=0))
        *_, last = plain.stream_items(TINY, ask)
        assert isinstance(last, Choice)
        return last

    yield answer


@contextmanager
def another_prompt(plain: ServedModels) -> Iterator[Answer]:
    """A server whose template has lost the conversation."""
    with without_adapter(plain) as answer:

        def shortened(messages: Sequence[Message]) -> Choice:
            choice = answer(messages)
            return replace(choice, reply=replace(choice.reply, prompt_tokens=1))

        yield shortened


@contextmanager
def another_token(served: AbstractContextManager[Answer]) -> Iterator[Answer]:
    """A server that is as sure as the trainer, and says something else."""
    with served as answer:

        def changed(messages: Sequence[Message]) -> Choice:
            choice = answer(messages)
            first, *rest = choice.tokens
            return replace(choice, tokens=(replace(first, id=first.id + 1), *rest))

        yield changed


def text_of_file(file_id: str) -> str:
    file = find_file(file_id, owner="local")
    assert file and file.purpose == "fine-tune-results"
    return file.path.read_text()


def made_folder(name: str) -> Path:
    made = find_model(name, owner="local")
    assert made
    return made.folder


class RealServer:
    """`tunesmith server` as a user starts it; `kill` is SIGKILL, and leaves its worker to find out by itself."""

    def __init__(self, base: Path) -> None:
        command = [sys.executable, "-m", "tunesmith", "server", "--base", str(base), "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        lines = []
        assert self.process.stdout
        while not lines or lines[-1] != "}\n":
            lines.append(self.process.stdout.readline())
            assert lines[-1], "the server ended"
        self.client = openai.OpenAI(base_url=json.loads("".join(lines))["url"], api_key="not needed")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.slow
def test_the_real_server_and_its_workers_are_killed(
    tiny_base: Path, tiny_rows: Callable[[int], Any], tunesmith_home: Path
) -> None:
    """The same job twice: one is left in peace; in the other's life the server, its worker or both die six times."""
    moments = random.Random(3)
    file = upload(tiny_rows(30))
    settings = {"n_epochs": 40, "batch_size": 4, "lora_dropout": 0.1}
    server = RealServer(tiny_base)
    ids = []
    try:
        for kills in (0, 6):
            job = create(server.client, file, model=str(tiny_base), seed=3, hyperparameters=settings)
            ids.append(job.id)
            for _ in range(kills):
                wait_for(server.client, job.id, "running")
                time.sleep(moments.uniform(1, 15))
                target = moments.choice(["server", "worker", "both"])
                if target != "server":
                    kill_worker(tunesmith_home / "jobs" / job.id / "worker.lock")
                if target != "worker":
                    server.kill()
                    server = RealServer(tiny_base)
            ended = wait_for(server.client, job.id, timeout_s=600)
            assert ended.status == "succeeded", (ended.error, messages_of(server.client, job.id))
        server.process.terminate()
        assert server.process.wait(60) == 0
    finally:
        server.kill()
    weights = [(tunesmith_home / "jobs" / name / "run/adapter/adapter_model.safetensors").read_bytes() for name in ids]
    assert weights[0] == weights[1]
