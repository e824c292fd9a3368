"""OpenAI's client against the routes of fine-tuning jobs, with nobody working on them: shapes, refusals, paging."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.job_server import TINY, job_server, upload
from tunesmith.facts import ModelFacts
from tunesmith.jobs.dispatcher import Setup
from tunesmith.jobs.validation import TrainableBase
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records.events import Event
from tunesmith.serve.records.jobs import cancel_job, create_job
from tunesmith.serve.records.queue import claim, write

FACTS = ModelFacts(Path("tiny"), "llama", 32, 2, 259, 512, 1000, 4000)
SETUP = Setup({TINY: TrainableBase("tiny", FACTS, "float32")}, lambda job, run: None)
ROWS = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}]


@pytest.fixture(scope="module")
def client(session_home: None) -> Iterator[openai.OpenAI]:
    """One server for all: each test has a home, and so a database, of its own."""
    with job_server(ServedModels({}), SETUP, works=False) as client:
        yield client


def create(client: openai.OpenAI, **options: Any) -> Any:
    file = options.pop("training_file", None) or upload(ROWS)
    return client.fine_tuning.jobs.create(**{"model": TINY, "training_file": file, **options})


def refused(client: openai.OpenAI, **options: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as refusal:
        create(client, **options)
    return refusal.value


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}}


def test_a_job_on_preferences_shows_its_beta(client: openai.OpenAI) -> None:
    job = create(client, **dpo(beta=0.2, n_epochs=2, batch_size=4, learning_rate_multiplier=1.5))
    assert job.method.type == "dpo" and job.method.dpo.hyperparameters.beta == 0.2
    expected = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5, "beta": 0.2}
    assert job.to_dict()["hyperparameters"] == expected
    assert client.fine_tuning.jobs.retrieve(job.id).method == job.method
    assert create(client, method={"type": "dpo"}).method.dpo.hyperparameters.beta == "auto"


def test_a_new_job_has_every_field(client: openai.OpenAI) -> None:
    file, other = upload(ROWS), upload(ROWS)
    wandb: Any = [{"type": "wandb", "wandb": {"project": "cards", "tags": ["a"]}}]
    settings: Any = {"n_epochs": 3, "lora_rank": 8}
    job = create(
        client, training_file=file, validation_file=other, hyperparameters=settings, seed=5, integrations=wandb
    )
    body = job.to_dict()
    required = "id object created_at error finished_at fine_tuned_model hyperparameters model organization_id"
    required += " result_files status trained_tokens training_file validation_file seed method integrations metadata"
    assert body.keys() >= set(required.split())
    assert job.object == "fine_tuning.job" and job.id.startswith("ftjob-") and job.status == "validating_files"
    expected = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto", "lora_rank": 8}
    assert body["hyperparameters"] == expected == body["method"]["supervised"]["hyperparameters"]
    assert (job.seed, job.model, job.result_files, body["integrations"]) == (5, TINY, [], wandb)
    assert client.fine_tuning.jobs.retrieve(job.id).to_dict() == body
    assert [event.message for event in client.fine_tuning.jobs.list_events(job.id)] == [
        f"Created fine-tuning job: {job.id}"
    ]


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"model": "tinny"}, "model", "Did you mean tiny?"),
        ({"training_file": "file-none"}, "training_file", "invalid training_file: file-none"),
        ({"validation_file": "file-none"}, "validation_file", "invalid validation_file: file-none"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters", "n_epochs is 0: it must be a whole number from 1"),
        ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters", "n_epochs is '3'"),
        ({"hyperparameters": {"batch_size": True}}, "hyperparameters", "batch_size is True"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters", "a number above 0"),
        ({"hyperparameters": {"lora_rnk": 4}}, "hyperparameters", "Did you mean lora_rank?"),
        ({"hyperparameters": {"lora_rank": 0}}, "hyperparameters", "lora_rank is 0: it must be as the recipe's 'rank'"),
        ({"method": {"type": "reinforcement"}}, "method.type", "Use the method supervised or dpo"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters", "beta is a hyperparameter of the method dpo alone"),
        (dpo(beta=0), "method.dpo.hyperparameters", "beta is 0: it must be a number above 0 and at most 2"),
        (dpo(beta=2.5), "method.dpo.hyperparameters", "beta is 2.5"),
        (dpo(betta=1), "method.dpo.hyperparameters", "Did you mean beta?"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "is not used by the method dpo"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", "is not used by the method supervised"),
        ({"method": {"type": "supervised", "superwised": {}}}, "method", "Did you mean supervised?"),
        ({"suffix": "x" * 65}, "suffix", "at most 64"),
        ({"suffix": "a\0b"}, "suffix", "NUL"),
        ({"extra_body": {"priority": "high"}}, "priority", "valid integer"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "at most 16"),
        ({"integrations": [{"type": "mlflow"}]}, "integrations[0].type", "'wandb'"),
        ({"extra_body": {"epochs": 3}}, "", "there is no field 'epochs'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: openai.OpenAI, options: dict[str, Any], param: str, words: str
) -> None:
    error = refused(client, **options)
    assert words in error.message and error.type == "invalid_request_error"
    assert error.param == param
    assert client.fine_tuning.jobs.list().data == []


def test_both_rates_at_once_and_files_of_another_purpose_are_refused(client: openai.OpenAI) -> None:
    both: Any = {"learning_rate": 0.1, "learning_rate_multiplier": 2}
    assert "contradict each other" in refused(client, hyperparameters=both).message
    assert "purpose='fine-tune'" in refused(client, training_file=upload(ROWS, purpose="batch")).message
    assert "invalid training_file" in refused(client, training_file=upload(ROWS, owner="someone else")).message


def test_a_repeated_request_starts_nothing_twice(client: openai.OpenAI) -> None:
    file = upload(ROWS)
    first = create(client, training_file=file)
    again: Any = {"x-stainless-retry-count": "1"}
    assert create(client, training_file=file, extra_headers=again).id == first.id
    assert create(client, training_file=file).id != first.id  # asked for a second time, on purpose
    assert create(client, training_file=file, suffix="other", extra_headers=again).id != first.id
    key: Any = {"Idempotency-Key": "k"}
    keyed = create(client, training_file=file, extra_headers=key)
    assert create(client, training_file=file, extra_headers=key).id == keyed.id != first.id
    assert "another body" in refused(client, training_file=file, suffix="x", extra_headers=key).message


def test_lists_are_paged_and_filtered(client: openai.OpenAI) -> None:
    file = upload(ROWS)
    labels: list[Any] = [{"team": "a", "x.y": "ä&=]"}, {"team": "b"}, None, {"team": "a"}, None]
    ids = [create(client, training_file=file, metadata=label).id for label in labels]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == ids[::-1]  # the client asks page by page
    page = client.fine_tuning.jobs.list(limit=2)
    assert page.has_more and [job.id for job in page.data] == ids[:2:-1]
    assert not client.fine_tuning.jobs.list(limit=5).has_more
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [ids[3], ids[0]]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "a", "x.y": "ä&=]"})] == [ids[0]]
    none = client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
    assert [job.id for job in none] == [ids[4], ids[2]]
    for name in ("ftjob-none", "ä", "x" * 200):
        with pytest.raises(openai.NotFoundError):
            client.fine_tuning.jobs.list(after=name)


def test_events_are_paged_newest_first(client: openai.OpenAI) -> None:
    job = create(client)
    mine = claim("me", states=("validating_files",))
    assert mine
    for number in range(1, 6):
        write(mine, events=[Event(f"step {number}", f"Step {number}/5", data={"step": number})])
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    told = [event.message for event in events]
    assert told == [*(f"Step {n}/5" for n in (5, 4, 3, 2, 1)), f"Created fine-tuning job: {job.id}"]
    assert events[0].type == "metrics" and events[0].data == {"step": 5} and events[0].id.startswith("ftevent-")
    assert events[-1].type == "message" and events[-1].level == "info"
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list_events(job.id, after="ftevent-none")


def test_states_and_conflicts(client: openai.OpenAI) -> None:
    job = create(client)
    with pytest.raises(openai.BadRequestError, match=r"is validating_files and cannot be resumed"):
        client.fine_tuning.jobs.resume(job.id)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "validating_files"
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled" and cancelled.finished_at
    with pytest.raises(openai.BadRequestError, match=r"is cancelled and cannot be cancelled") as conflict:
        client.fine_tuning.jobs.cancel(job.id)
    assert conflict.value.code == "wrong_job_state"
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert told[:3] == ["The job was cancelled", "The job was resumed", "The job was paused"]
    assert client.fine_tuning.jobs.checkpoints.list(job.id).to_dict() == {
        "object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None,
    }  # fmt: skip


def test_a_foreign_job_is_found_as_little_as_none(client: openai.OpenAI) -> None:
    theirs = create_job(order_of_another(), owner="someone else").id
    url = str(client.base_url)
    for method, path in (
        ("GET", ""), ("GET", "/events"), ("GET", "/checkpoints"), ("POST", "/cancel"), ("POST", "/pause"),
        ("POST", "/resume"),
    ):  # fmt: skip
        answers = [httpx.request(method, f"{url}fine_tuning/jobs/{name}{path}") for name in (theirs, "ftjob-none")]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(theirs, "X") == answers[1].text.replace("ftjob-none", "X")
    answer = httpx.get(f"{url}fine_tuning/jobs", params={"after": theirs})
    assert answer.status_code == 404 and answer.json()["error"]["param"] == "after"
    assert client.fine_tuning.jobs.list().data == []
    assert cancel_job(theirs, owner="someone else")


def order_of_another() -> Any:
    from tests.serve.test_jobs_queue import order

    return order()


def test_bodies_that_are_none(client: openai.OpenAI) -> None:
    url = f"{client.base_url}fine_tuning/jobs"
    for content in (b"", b"null", b"[]", b"{", b"\xff", json.dumps({"model": 1}).encode()):
        answer = httpx.post(url, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, content
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(url, params={"limit": 0}).json()["error"]["param"] == "limit"


def test_checkpoints_are_not_shared(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"belongs to its owner"):
        client.fine_tuning.checkpoints.permissions.create("ft:tiny:local::1:ckpt-step-2", project_ids=["p"])
    with pytest.raises(openai.BadRequestError, match=r"belongs to its owner"):
        client.fine_tuning.checkpoints.permissions.delete("cp_1", fine_tuned_model_checkpoint="ft:tiny:local::1")
