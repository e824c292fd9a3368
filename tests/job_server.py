"""A server with its dispatcher in this process, on a tiny base: what the tests of jobs ask over HTTP."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx  # noqa: F401  (whole before a thread imports it: the client looks for it, and takes half of one as it is)
import openai

from tunesmith.database import transaction
from tunesmith.facts import read_facts
from tunesmith.jobs.dispatcher import Dispatcher, Setup
from tunesmith.jobs.process import is_free
from tunesmith.jobs.validation import TrainableBase
from tunesmith.serve.access import LOCAL_OWNER
from tunesmith.serve.app import SERVER, create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records.files import store_result
from tunesmith.serve.run import running

TINY = "tiny"
SMALL = {"n_epochs": 2, "lora_rank": 4, "learning_rate": 0.01, "threads": 1, "patience": None}  # see make_recipe
ENDED = ("succeeded", "failed", "cancelled")


def trainable(base: Path) -> dict[str, TrainableBase]:
    return {TINY: TrainableBase(str(base), read_facts(base), "float32")}


@contextmanager
def working(setup: Setup) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(setup)
    dispatcher.start()
    try:
        yield dispatcher
    finally:
        dispatcher.stop()


@contextmanager
def job_server(served: ServedModels, setup: Setup, *, works: bool = True) -> Iterator[openai.OpenAI]:
    """The whole server; with `works` False nobody takes a job from the queue."""
    app = create_app(served, routes=SERVER, trainable=setup.bases)
    with running(app) as url:
        client = openai.OpenAI(base_url=url, api_key="not needed", max_retries=0, timeout=30)
        if not works:
            yield client
            return
        with working(setup):
            yield client


def upload(rows: Sequence[Mapping[str, Any]] | bytes, *, owner: str = LOCAL_OWNER, purpose: str = "fine-tune") -> str:
    """A file as if it had been uploaded; its id."""
    data = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    with transaction() as connection:
        return store_result(connection, owner=owner, filename="rows.jsonl", purpose=purpose, data=data)


def wait_for(client: openai.OpenAI, job_id: str, *states: str, timeout_s: float = 120) -> Any:
    """The job once it is in one of the states, or has ended."""
    end = time.monotonic() + timeout_s
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in (*states, *ENDED):
            return job
        assert time.monotonic() < end, f"the job is still {job.status}"
        time.sleep(0.05)


def messages_of(client: openai.OpenAI, job_id: str) -> list[str]:
    """Oldest first."""
    found = [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)]
    return found[::-1]


def kill_worker(lock: Path) -> bool:
    """kill -9 the worker that holds a job's lock; False when there is none."""
    if not lock.is_file():
        return False
    with lock.open("r+") as file:
        if is_free(file.fileno()) or not (text := lock.read_text()):
            return False
    os.kill(int(text), signal.SIGKILL)
    return True
