"""/v1/fine_tuning/alpha/graders: a grader tried before it is used, and run on one answer.

Not here: bodies (wire.graders), grading (serve.graders).
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import Request

from tunesmith.serve.graders.grade import Bench, check_grader, grade, sample_of
from tunesmith.serve.route import Route, Who
from tunesmith.serve.wire.body import json_body
from tunesmith.serve.wire.graders import GraderBody, RunBody, RunMetadata, RunRequest, ValidateRequest


def validate_grader(
    *, request: Request, who: Who, wanted: Annotated[ValidateRequest, json_body(ValidateRequest)]
) -> dict[str, Any]:
    bench: Bench = request.app.state.bench
    check_grader(wanted.grader, bench, owner=who.owner, param="grader")
    return {"grader": wanted.grader.model_dump(exclude_unset=True)}


def run_grader(*, request: Request, who: Who, wanted: Annotated[RunRequest, json_body(RunRequest)]) -> dict[str, Any]:
    bench: Bench = request.app.state.bench
    check_grader(wanted.grader, bench, owner=who.owner, param="grader")
    start = time.perf_counter()
    sample = sample_of(wanted.model_sample)
    graded = grade(wanted.grader, bench, owner=who.owner, sample=sample, item=wanted.item or {})
    metadata = RunMetadata(
        name=wanted.grader.name,
        type=wanted.grader.type,
        errors=graded.faults,
        error_details=graded.detail,
        execution_time=time.perf_counter() - start,
        scores=graded.scores or {wanted.grader.name: graded.score},
        token_usage=sum(graded.tokens.values()) or None,
        sampled_model_name=next(iter(graded.tokens), None),
    )
    body = RunBody(
        reward=graded.score,
        sub_rewards=graded.scores,
        metadata=metadata,
        model_grader_token_usage_per_model=dict(graded.tokens),
    )
    return body.model_dump()


ROUTES = (
    Route(
        "POST", "/v1/fine_tuning/alpha/graders/validate", validate_grader, "inference",
        body=ValidateRequest, answer=GraderBody,
    ),
    Route("POST", "/v1/fine_tuning/alpha/graders/run", run_grader, "inference", body=RunRequest, answer=RunBody),
)  # fmt: skip
