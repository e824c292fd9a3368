"""The rows of an eval run, and what its model is asked for each: from a file, the request itself, stored completions.

Not here: asking and grading (serve.eval_runs). Called when a run is made, to refuse a bad row before anything is asked,
and when it is worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tunesmith.chat import Message
from tunesmith.errors import MAX_SHOWN
from tunesmith.model import Base
from tunesmith.render import RenderError
from tunesmith.sampling import Constraint
from tunesmith.serve.graders.grade import fill_messages, sample_of
from tunesmith.serve.graders.judge import sampling_of
from tunesmith.serve.graders.template import VariableError, look_up, parse_path
from tunesmith.serve.grammar import json_grammar
from tunesmith.serve.item_schema import Check
from tunesmith.serve.records.completions import Stored, find_completion, list_completions
from tunesmith.serve.records.files import find_file
from tunesmith.serve.records.paging import Cursor
from tunesmith.serve.reply import Ask
from tunesmith.serve.wire.body import parse_json
from tunesmith.serve.wire.errors import RequestError, not_found
from tunesmith.serve.wire.evals import (
    CompletionsRun,
    ContentSource,
    DataSource,
    FileSource,
    ReferencedMessages,
    RunSampling,
    StoredSource,
)
from tunesmith.serve.wire.graders import TemplateMessage
from tunesmith.serve.wire.tool_choice import calls_of
from tunesmith.turns import parse_tools

MAX_ROWS = 100_000
MAX_LINE_BYTES = 2**20
PARAM = "data_source.source"
SAMPLING = "data_source.sampling_params"
DATA_SOURCE: TypeAdapter[DataSource] = TypeAdapter(DataSource)


@dataclass(frozen=True, slots=True)
class Row:
    """`sample`: the answer that the row brings along, as graders see it. `fault`: why there is no row any more."""

    position: int
    item: dict[str, Any]
    sample: dict[str, Any] | None = None
    fault: str | None = None


def choose(source: StoredSource, *, owner: str, labels: dict[str, str]) -> list[str]:
    """The ids of the stored completions that a run is of: those of now, in the order they were made."""
    wanted = labels | (source.metadata or {})
    found, _ = list_completions(owner, model=source.model, labels=wanted, cursor=Cursor(MAX_ROWS, newest_first=False))
    low, high = source.created_after or 0, source.created_before
    ids = [one.id for one in found if low <= one.created and (high is None or one.created <= high)]
    return ids[: source.limit]


def read_rows(source: DataSource, *, owner: str, chosen: Sequence[str]) -> Iterator[Row]:
    """In order. Raises RequestError for a file that is gone, or a line that is no row, with its number."""
    if isinstance(source.source, FileSource):
        yield from _file_rows(source.source.id, owner)
    elif isinstance(source.source, ContentSource):
        for position, row in enumerate(source.source.content):
            yield Row(position, row.item, row.sample)
    else:
        for position, id in enumerate(chosen):
            stored = find_completion(id, owner=owner)
            yield _stored_row(position, stored) if stored else Row(position, {}, fault=f"{id} has been deleted.")


def count_rows(rows: Iterator[Row], check: Check) -> int:
    """How many there are. Raises RequestError with the first 20 that the schema refuses, when there are none, and when
    there are too many."""
    problems, count = [], 0
    for count, row in enumerate(rows, start=1):
        if count > MAX_ROWS:
            raise RequestError(f"The run has more than {MAX_ROWS} rows.", param=PARAM)
        if why := check(row.item):
            problems.append(f"row {row.position + 1}: {why}")
    if problems:
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        shown = "; ".join(problems[:MAX_SHOWN])
        raise RequestError(f"Items do not fit the eval's item_schema: {shown}{more}.", param=PARAM)
    if not count:
        raise RequestError("The run has no rows.", param=PARAM)
    return count


def ask_of(source: CompletionsRun, row: Row) -> Ask:
    """What the model is asked for a row. Raises VariableError for a row without what the messages need."""
    asked = source.sampling_params or RunSampling()
    tools = parse_tools(asked.tools)[0]
    return Ask(
        tuple(_messages(source, row)),
        max_new_tokens=asked.max_completion_tokens,
        sampling=sampling_of(asked.temperature, top_p=asked.top_p, seed=asked.seed),
        tools=tools,
        constrain=_constraint(asked, tools),
    )


def check_sampling(asked: RunSampling | None, base: Base) -> None:
    """Raises RequestError for tools that the base's template leaves out, and a format that cannot be kept to."""
    asked = asked or RunSampling()
    tools = parse_tools(asked.tools)[0]
    try:
        base.renderer.prompt([Message("user", "?")], tools=tools)
        if constrain := _constraint(asked, tools):
            constrain(base)
    except RenderError as error:
        raise RequestError(str(error), param=f"{SAMPLING}.tools") from error
    except RequestError as error:
        raise RequestError(error.message, param=f"{SAMPLING}.{error.param}", code=error.code) from error


def _constraint(asked: RunSampling, tools: Sequence[Mapping[str, Any]]) -> Callable[[Base], Constraint] | None:
    schema = asked.response_format.schema_of_reply if asked.response_format else None
    calls = calls_of(tools, "auto", parallel=True, schema=schema)
    return calls or (None if schema is None else json_grammar(schema))


def _messages(source: CompletionsRun, row: Row) -> list[Message]:
    wanted = source.input_messages
    if wanted is not None and not isinstance(wanted, ReferencedMessages):
        return fill_messages(wanted.template, {"item": row.item})
    name = wanted.item_reference if wanted else "item.input"
    value = look_up(parse_path(name), {"item": row.item})
    try:
        turns = TypeAdapter(list[TemplateMessage]).validate_python(value)
    except ValidationError as error:
        raise VariableError(f"{name} is no list of messages with a role and a text.") from error
    if not turns:
        raise VariableError(f"{name} holds no message.")
    return [Message(turn.role, turn.text) for turn in turns]


def _file_rows(id: str, owner: str) -> Iterator[Row]:
    file = find_file(id, owner=owner)
    if file is None:
        raise not_found("file", id, param=f"{PARAM}.id")
    position = 0
    with file.path.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise RequestError(f"Line {number} of {id} is longer than {MAX_LINE_BYTES} bytes.", param=f"{PARAM}.id")
            if line.strip():
                yield _line_row(line, position, place=f"Line {number} of {id}")
                position += 1


def _line_row(line: bytes, position: int, *, place: str) -> Row:
    try:
        values = parse_json(line, what=place)
    except RequestError as error:
        raise RequestError(error.message, param=f"{PARAM}.id") from error
    item = values.get("item") if isinstance(values, dict) else None
    sample = values.get("sample") if isinstance(values, dict) else None
    if not isinstance(item, dict) or not isinstance(sample, dict | None):
        form = '{"item": {...}, "sample": {...}}'
        raise RequestError(f"{place} is no row: each is an object {form}, sample being optional.", param=f"{PARAM}.id")
    return Row(position, item, sample)


def _stored_row(position: int, stored: Stored) -> Row:
    choice = stored.body["choices"][0]
    text = choice["message"].get("content") or ""
    sample = sample_of(text, {"model": stored.model, "finish_reason": choice["finish_reason"]})
    sample |= {"output_tools": choice["message"].get("tool_calls") or []}
    return Row(position, {"input": stored.messages, "metadata": stored.labels, "model": stored.model}, sample)
