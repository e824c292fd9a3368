"""/v1/evals: evals, their runs, and the output items of a run.

Not here: bodies (wire.evals), the runs' work (serve.eval_runs). A run's rows are looked through before it is made, so
that a bad line is refused and not found an hour later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Request

from tunesmith.database import transaction
from tunesmith.serve.eval_rows import check_sampling, choose, count_rows, read_rows
from tunesmith.serve.eval_runs import EvalRunner
from tunesmith.serve.graders.grade import Bench, check_grader
from tunesmith.serve.graders.template import VariableError, parse_path, variables
from tunesmith.serve.item_schema import schema_check
from tunesmith.serve.records import eval_runs as run_records
from tunesmith.serve.records import evals as records
from tunesmith.serve.records.eval_runs import EvalItem, EvalRun
from tunesmith.serve.records.evals import Eval
from tunesmith.serve.route import Route, Who
from tunesmith.serve.wire import evals as wire
from tunesmith.serve.wire.body import json_body
from tunesmith.serve.wire.errors import RequestError, not_found
from tunesmith.serve.wire.graders import TextSimilarity
from tunesmith.serve.wire.paging import Page, list_body

Interval = Callable[[int, int], tuple[float, float, float]]  # (passed, of how many) -> share, and its interval's ends


# -- evals ---------------------------------------------------------------------------------------------------------


def create_eval(
    *, request: Request, who: Who, wanted: Annotated[wire.EvalRequest, json_body(wire.EvalRequest)]
) -> dict[str, Any]:
    bench: Bench = request.app.state.bench
    for index, criterion in enumerate(wanted.testing_criteria):
        param = f"testing_criteria[{index}]"
        if isinstance(criterion, TextSimilarity) and criterion.pass_threshold is None:
            raise RequestError("Say from which score on a row passes.", param=f"{param}.pass_threshold")
        check_grader(criterion, bench, owner=who.owner, param=param)
    if isinstance(wanted.data_source_config, wire.CustomConfig):
        schema_check(wanted.data_source_config.item_schema)
    made = records.add_eval(
        who.owner,
        name=wanted.name,
        labels=wanted.metadata or {},
        config=wanted.data_source_config.model_dump(exclude_unset=True),
        criteria=[criterion.model_dump(exclude_unset=True) for criterion in wanted.testing_criteria],
    )
    return _eval_body(made)


def list_evals(
    *,
    who: Who,
    cursor: Page,
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> dict[str, Any]:
    found, more = records.list_evals(who.owner, cursor=cursor, by_update=order_by == "updated_at")
    return list_body([_eval_body(one) for one in found], has_more=more)


def get_eval(*, who: Who, eval_id: str) -> dict[str, Any]:
    return _eval_body(_eval(who.owner, eval_id))


def update_eval(
    *, who: Who, eval_id: str, wanted: Annotated[wire.EvalUpdate, json_body(wire.EvalUpdate)]
) -> dict[str, Any]:
    changed = records.update_eval(eval_id, owner=who.owner, name=wanted.name, labels=wanted.metadata)
    if changed is None:
        raise not_found("eval", eval_id)
    return _eval_body(changed)


def delete_eval(*, who: Who, eval_id: str) -> dict[str, Any]:
    _eval(who.owner, eval_id)
    with transaction() as connection:
        deleted = records.forget_eval(connection, eval_id, owner=who.owner)
        run_records.forget_runs(connection, owner=who.owner, eval_id=eval_id)
    return wire.EvalDeleted(deleted=deleted, eval_id=eval_id).model_dump()


# -- runs ----------------------------------------------------------------------------------------------------------


def create_run(
    *, request: Request, who: Who, eval_id: str, wanted: Annotated[wire.RunRequest, json_body(wire.RunRequest)]
) -> dict[str, Any]:
    found = _eval(who.owner, eval_id)
    source = wanted.data_source
    _check_source(request.app.state.bench, source, owner=who.owner)
    chosen: list[str] = []
    if isinstance(source.source, wire.StoredSource):
        chosen = choose(source.source, owner=who.owner, labels=found.config.get("metadata") or {})
    check = schema_check(found.config.get("item_schema") or {})
    total = count_rows(read_rows(source, owner=who.owner, chosen=chosen), check)
    values = source.model_dump(exclude_unset=True)
    run = run_records.new_run(who.owner, eval_id, name=wanted.name, source=values, criteria=len(found.criteria))
    run = replace(run, labels=wanted.metadata or {}, chosen=chosen, total=total)
    run_records.add_run(run)
    runner: EvalRunner = request.app.state.eval_runner
    runner.wake()
    return _run_body(request, found, run)


def list_runs(
    *,
    request: Request,
    who: Who,
    eval_id: str,
    cursor: Page,
    status: wire.RunStatus | None = None,
) -> dict[str, Any]:
    found = _eval(who.owner, eval_id)
    runs, more = run_records.list_runs(who.owner, eval_id, status=status, cursor=cursor)
    return list_body([_run_body(request, found, run) for run in runs], has_more=more)


def get_run(*, request: Request, who: Who, eval_id: str, run_id: str) -> dict[str, Any]:
    return _run_body(request, _eval(who.owner, eval_id), _run(who.owner, eval_id, run_id))


def cancel_run(*, request: Request, who: Who, eval_id: str, run_id: str) -> dict[str, Any]:
    """Rows that are done stay. A run that has ended stays as it ended."""
    _run(who.owner, eval_id, run_id)
    run_records.end_run(run_id, "canceled")
    return get_run(request=request, who=who, eval_id=eval_id, run_id=run_id)


def delete_run(*, who: Who, eval_id: str, run_id: str) -> dict[str, Any]:
    _run(who.owner, eval_id, run_id)
    deleted = run_records.delete_run(run_id, owner=who.owner, eval_id=eval_id)
    return wire.RunDeleted(deleted=deleted, run_id=run_id).model_dump()


# -- output items --------------------------------------------------------------------------------------------------


def list_items(
    *,
    who: Who,
    eval_id: str,
    run_id: str,
    cursor: Page,
    status: wire.ItemStatus | None = None,
) -> dict[str, Any]:
    _run(who.owner, eval_id, run_id)
    items, more = run_records.list_items(who.owner, run_id, status=status, cursor=cursor)
    return list_body([_item_body(item) for item in items], has_more=more)


def get_item(*, who: Who, eval_id: str, run_id: str, item_id: str) -> dict[str, Any]:
    _run(who.owner, eval_id, run_id)
    item = run_records.find_item(item_id, run_id=run_id, owner=who.owner)
    if item is None:
        raise not_found("output item", item_id)
    return _item_body(item)


# -- found, checked, and as bodies ---------------------------------------------------------------------------------


def _eval(owner: str, eval_id: str) -> Eval:
    found = records.find_eval(eval_id, owner=owner)
    if found is None:
        raise not_found("eval", eval_id)
    return found


def _run(owner: str, eval_id: str, run_id: str) -> EvalRun:
    _eval(owner, eval_id)
    run = run_records.find_run(run_id, eval_id=eval_id, owner=owner)
    if run is None:
        raise not_found("eval run", run_id)
    return run


def _check_source(bench: Bench, source: wire.DataSource, *, owner: str) -> None:
    """What can be known to fail before any row is asked."""
    if not isinstance(source, wire.CompletionsRun):
        return
    stored = isinstance(source.source, wire.StoredSource)
    if source.model is None:
        if not stored or source.input_messages is not None:
            raise RequestError("Name the model that is to answer.", param="data_source.model")
        return
    check_sampling(source.sampling_params, bench.models.get(source.model, owner=owner).base)
    if source.input_messages is None and not stored:
        raise RequestError("Say what the model is asked.", param="data_source.input_messages")
    try:
        if isinstance(source.input_messages, wire.ReferencedMessages):
            parse_path(source.input_messages.item_reference)
        elif source.input_messages is not None:
            for message in source.input_messages.template:
                variables(message.text)
    except VariableError as error:
        raise RequestError(str(error), param="data_source.input_messages") from error


def _eval_body(found: Eval) -> dict[str, Any]:
    """A custom source comes back with the schema of a whole row, as OpenAI gives it."""
    config = dict(found.config)
    if config["type"] == "custom":
        item_schema, with_sample = config["item_schema"], config.get("include_sample_schema", False)
        properties = {"item": item_schema, **({"sample": {"type": "object"}} if with_sample else {})}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        config = {"type": "custom", "schema": schema}
    else:
        config["schema"] = {"type": "object", "properties": {"item": {"type": "object"}, "sample": {"type": "object"}}}
    return wire.EvalBody(
        id=found.id,
        name=found.name,
        created_at=found.created,
        metadata=found.labels,
        data_source_config=config,
        testing_criteria=found.criteria,
    ).model_dump()


def _run_body(request: Request, found: Eval, run: EvalRun) -> dict[str, Any]:
    interval: Interval = request.app.state.pass_interval
    counts, graded = run.counts, run.counts["passed"] + run.counts["failed"]
    usage = [
        wire.Usage(model_name=name, invocation_count=calls, prompt_tokens=prompt, completion_tokens=completion,
                   total_tokens=prompt + completion)
        for name, (calls, prompt, completion) in run.usage.items()
    ]  # fmt: skip
    rate = dict(zip(("mean", "low", "high"), interval(counts["passed"], graded), strict=True)) if graded else None
    return wire.EvalRunBody(
        id=run.id,
        eval_id=run.eval_id,
        created_at=run.created,
        status=run.status,
        name=run.name,
        model=run.source.get("model") or "",
        report_url=f"{str(request.base_url).rstrip('/')}/v1/evals/{run.eval_id}/runs/{run.id}",
        metadata=run.labels,
        data_source=run.source,
        error=wire.RunFault(**run.error) if run.error else None,
        result_counts=wire.ResultCounts(total=run.total, **counts),
        per_model_usage=usage,
        per_testing_criteria_results=[
            wire.CriterionResult(testing_criteria=criterion.get("name", criterion["type"]), **tally)
            for criterion, tally in zip(found.criteria, run.tallies, strict=True)
        ],
        pass_rate=wire.PassRate(**rate) if rate else None,
    ).model_dump()


def _item_body(item: EvalItem) -> dict[str, Any]:
    return wire.EvalItemBody(
        id=item.id,
        run_id=item.run_id,
        eval_id=item.eval_id,
        created_at=item.created,
        status=item.status,
        datasource_item_id=item.position,
        datasource_item=item.item,
        results=[wire.ItemResult(**result) for result in item.results],
        sample=item.sample,
    ).model_dump()


EVAL, RUN = "/v1/evals/{eval_id}", "/v1/evals/{eval_id}/runs/{run_id}"
ROUTES = (
    Route("POST", "/v1/evals", create_eval, "evals.write", 201, body=wire.EvalRequest, answer=wire.EvalBody),
    Route("GET", "/v1/evals", list_evals, "evals.read", answer=wire.EvalPage),
    Route("GET", EVAL, get_eval, "evals.read", answer=wire.EvalBody),
    Route("POST", EVAL, update_eval, "evals.write", body=wire.EvalUpdate, answer=wire.EvalBody),
    Route("DELETE", EVAL, delete_eval, "evals.write", answer=wire.EvalDeleted),
    Route("POST", f"{EVAL}/runs", create_run, "evals.write", 201, body=wire.RunRequest, answer=wire.EvalRunBody),
    Route("GET", f"{EVAL}/runs", list_runs, "evals.read", answer=wire.EvalRunPage),
    Route("GET", RUN, get_run, "evals.read", answer=wire.EvalRunBody),
    Route("POST", RUN, cancel_run, "evals.write", answer=wire.EvalRunBody),
    Route(
        "POST", f"{RUN}/cancel", cancel_run, "evals.write", answer=wire.EvalRunBody
    ),  # the same, as newer clients ask
    Route("DELETE", RUN, delete_run, "evals.write", answer=wire.RunDeleted),
    Route("GET", f"{RUN}/output_items", list_items, "evals.read", answer=wire.EvalItemPage),
    Route("GET", f"{RUN}/output_items/{{item_id}}", get_item, "evals.read", answer=wire.EvalItemBody),
)
