"""/v1/fine_tuning: jobs, their events and checkpoints.

Not here: bodies (serve.wire.jobs), the table (serve.records.jobs), who trains them (jobs). A state that does not allow
what is asked stays so: it is a 400, which clients do not retry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Annotated, Any

from fastapi import Header, Query, Request

from tunesmith.errors import did_you_mean
from tunesmith.serve.limits import refuse_over_jobs
from tunesmith.serve.records.events import list_checkpoints, list_events
from tunesmith.serve.records.files import find_file
from tunesmith.serve.records.jobs import (
    Job,
    ReusedKeyError,
    WrongStateError,
    cancel_job,
    create_job,
    find_job,
    list_jobs,
    pause_job,
    resume_job,
)
from tunesmith.serve.route import Route, Who
from tunesmith.serve.wire.errors import RequestError, not_found
from tunesmith.serve.wire.jobs import JobRequest, checkpoint_body, event_body, job_body, page

PURPOSE = "fine-tune"
Limit = Annotated[int, Query(ge=1, le=100)]
ID = re.compile(r"[\w-]{1,64}", re.ASCII)  # anything else was never an id; not every database would take it
LABEL = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
LABELS_DOC = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "description": "metadata[key]=value: jobs with that label; metadata=null: jobs without any",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}
NO_SHARING = "A checkpoint belongs to its owner on this server: there are no projects to share it with."


def create(
    request: Request,
    *,
    who: Who,
    body: JobRequest,
    retries: Annotated[int, Header(alias="x-stainless-retry-count", ge=0)] = 0,
    idempotency_key: Annotated[str | None, Header(alias="idempotency-key", min_length=1, max_length=255)] = None,
) -> dict[str, Any]:
    order = body.order(request_key=idempotency_key, is_retry=retries > 0)
    _check_model(request.app.state.trainable, order.model)
    for param, file_id in (("training_file", order.training_file), ("validation_file", order.validation_file)):
        _check_file(param, file_id, who.owner)
    try:
        return job_body(create_job(order, owner=who.owner, admit=partial(refuse_over_jobs, who)))
    except ReusedKeyError as error:
        text = "This Idempotency-Key was used for a job with another body. Use a new key."
        raise RequestError(text, code="idempotency_key_reused") from error


def listed(request: Request, *, who: Who, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    labels = {found[1]: value for key, value in request.query_params.items() if (found := LABEL.fullmatch(key))}
    bare = request.query_params.get("metadata") == "null"
    place = _job(after, who, param="after").number if after else None
    jobs = list_jobs(owner=who.owner, limit=limit + 1, after=place, labels=labels, bare=bare)
    return page([job_body(job) for job in jobs], limit)


def retrieve(who: Who, job_id: str) -> dict[str, Any]:
    return job_body(_job(job_id, who))


def cancel(who: Who, job_id: str) -> dict[str, Any]:
    return _moved(cancel_job, job_id, who, wanted="cancelled")


def pause(who: Who, job_id: str) -> dict[str, Any]:
    return _moved(pause_job, job_id, who, wanted="paused")


def resume(who: Who, job_id: str) -> dict[str, Any]:
    return _moved(resume_job, job_id, who, wanted="resumed")


def events(who: Who, job_id: str, *, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    job = _job(job_id, who)
    known = after is None or ID.fullmatch(after)
    found = list_events(job.id, owner=who.owner, limit=limit + 1, after=after) if known else None
    if found is None:
        raise not_found("event", str(after), param="after")
    return page([event_body(event) for event in found], limit)


def checkpoints(who: Who, job_id: str, *, after: str | None = None, limit: Limit = 10) -> dict[str, Any]:
    job = _job(job_id, who)
    found = list_checkpoints(job.id, owner=who.owner)
    if after is not None:
        places = [place for place, one in enumerate(found) if one.id == after]
        if not places:
            raise not_found("checkpoint", after, param="after")
        found = found[places[0] + 1 :]
    return page([checkpoint_body(one) for one in found[: limit + 1]], limit, named=True)


def permissions(who: Who, checkpoint: str) -> None:
    raise RequestError(NO_SHARING, param="checkpoint", code="unsupported")


def permission(who: Who, checkpoint: str, *, permission_id: str) -> None:
    permissions(who, checkpoint)


def _check_model(trainable: Collection[str], model: str) -> None:
    if model not in trainable:
        text = f"The model {model!r} cannot be fine-tuned here. {did_you_mean(model, trainable, what='bases')}"
        raise RequestError(text, param="model", code="model_not_found")


def _check_file(param: str, file_id: str | None, owner: str) -> None:
    """A file that is not there is told in OpenAI's words, a foreign one in the same."""
    if file_id is None:
        return
    file = find_file(file_id, owner=owner)
    if file is None:
        raise RequestError(f"invalid {param}: {file_id}", param=param)
    if file.purpose != PURPOSE:
        text = f"{param} {file_id} was uploaded for {file.purpose!r}. Upload it with purpose={PURPOSE!r}."
        raise RequestError(text, param=param)


def _job(job_id: str, who: Who, *, param: str | None = None) -> Job:
    job = find_job(job_id, owner=who.owner) if ID.fullmatch(job_id) else None
    if job is None:
        raise not_found("fine-tuning job", job_id, param=param)
    return job


def _moved(move: Callable[..., Job | None], job_id: str, who: Who, *, wanted: str) -> dict[str, Any]:
    try:
        moved = move(_job(job_id, who).id, owner=who.owner)
    except WrongStateError as error:
        raise RequestError(f"The job {job_id} is {error} and cannot be {wanted}.", code="wrong_job_state") from error
    if moved is None:
        raise not_found("fine-tuning job", job_id)
    return job_body(moved)


_JOBS = "/v1/fine_tuning/jobs"
_PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
ROUTES = (
    Route("POST", _JOBS, create, "jobs.write"),
    Route("GET", _JOBS, listed, "jobs.read", docs=LABELS_DOC),
    Route("GET", f"{_JOBS}/{{job_id}}", retrieve, "jobs.read"),
    Route("POST", f"{_JOBS}/{{job_id}}/cancel", cancel, "jobs.write"),
    Route("POST", f"{_JOBS}/{{job_id}}/pause", pause, "jobs.write"),
    Route("POST", f"{_JOBS}/{{job_id}}/resume", resume, "jobs.write"),
    Route("GET", f"{_JOBS}/{{job_id}}/events", events, "jobs.read"),
    Route("GET", f"{_JOBS}/{{job_id}}/checkpoints", checkpoints, "jobs.read"),
    Route("GET", _PERMISSIONS, permissions, "jobs.read"),
    Route("POST", _PERMISSIONS, permissions, "jobs.write"),
    Route("DELETE", f"{_PERMISSIONS}/{{permission_id}}", permission, "jobs.write"),
)
