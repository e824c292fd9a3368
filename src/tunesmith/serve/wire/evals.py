"""OpenAI's evals as bodies: what is asked for, and what an eval, a run and an output item look like.

Not here: records, the running of a run (serve.eval_runs), graders (wire.graders). Ours beside theirs: `pass_rate` with
its interval, and `errored` rows of each criterion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunesmith.serve.wire.body import Wire
from tunesmith.serve.wire.chat import ResponseFormat
from tunesmith.serve.wire.errors import RequestError
from tunesmith.serve.wire.graders import Part, TemplateMessage
from tunesmith.serve.wire.metadata import Metadata
from tunesmith.turns import parse_tools

RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]
ItemStatus = Literal["pass", "fail", "error"]
MAX_CRITERIA = 32
Label = Annotated[str, Field(max_length=512)]


def _tools(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if problems := parse_tools(given)[1]:
        raise ValueError(f"{problems[0].what} {problems[0].todo}")
    return given


class CustomConfig(Wire):
    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class StoredConfig(Wire):
    type: Literal["logs", "stored_completions"]
    metadata: Metadata | None = None


class EvalRequest(Wire):
    name: Label | None = None
    metadata: Metadata | None = None
    data_source_config: Annotated[CustomConfig | StoredConfig, Field(discriminator="type")]
    testing_criteria: Annotated[list[Part], Field(min_length=1, max_length=MAX_CRITERIA)]


class EvalUpdate(Wire):
    name: Label | None = None
    metadata: Metadata | None = None


class FileSource(Wire):
    type: Literal["file_id"]
    id: str


class ContentRow(Wire):
    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class ContentSource(Wire):
    type: Literal["file_content"]
    content: Annotated[list[ContentRow], Field(min_length=1)]


class StoredSource(Wire):
    """The owner's stored completions that meet all of these."""

    type: Literal["stored_completions"]
    metadata: Metadata | None = None
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    limit: int | None = Field(None, ge=1)


class RunFormat(Wire):
    """As chat's `response_format`, kept as it came."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None

    @property
    def schema_of_reply(self) -> Mapping[str, Any] | None:
        """What the reply must be JSON of; None for a plain text."""
        return ResponseFormat.model_validate(self.model_dump(exclude_none=True)).schema_of_reply

    @model_validator(mode="after")
    def _check_schema(self) -> RunFormat:
        try:
            _ = self.schema_of_reply
        except (ValidationError, RequestError) as error:
            raise ValueError("json_schema should be an object with a 'name' and a 'schema'") from error
        return self


class RunSampling(Wire):
    """temperature is 0 by default, as in chat here. What is not supported may only be given its neutral value."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: RunFormat | None = None
    tools: Annotated[list[dict[str, Any]], AfterValidator(_tools)] | None = None
    reasoning_effort: Literal["none"] | None = None


class TemplateMessages(Wire):
    type: Literal["template"]
    template: Annotated[list[TemplateMessage], Field(min_length=1)]


class ReferencedMessages(Wire):
    """`item.NAME`: the field of the row that holds the list of messages."""

    type: Literal["item_reference"]
    item_reference: str


class JsonlRun(Wire):
    """Rows that hold their answer already, in `sample`, or need none."""

    type: Literal["jsonl"]
    source: Annotated[FileSource | ContentSource, Field(discriminator="type")]


class CompletionsRun(Wire):
    """Rows that a served model answers. Stored completions without `model` are graded as they are."""

    type: Literal["completions"]
    source: Annotated[FileSource | ContentSource | StoredSource, Field(discriminator="type")]
    model: str | None = None
    input_messages: Annotated[TemplateMessages | ReferencedMessages, Field(discriminator="type")] | None = None
    sampling_params: RunSampling | None = None


DataSource = Annotated[JsonlRun | CompletionsRun, Field(discriminator="type")]


class RunRequest(Wire):
    name: Label | None = None
    metadata: Metadata | None = None
    data_source: DataSource


# -- answers -------------------------------------------------------------------------------------------------------


class EvalBody(BaseModel):
    id: str
    object: Literal["eval"] = "eval"
    name: str
    created_at: int
    metadata: dict[str, str]
    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]


class ResultCounts(BaseModel):
    total: int
    errored: int
    failed: int
    passed: int


class Usage(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    invocation_count: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0


class CriterionResult(BaseModel):
    testing_criteria: str
    passed: int
    failed: int
    errored: int


class PassRate(BaseModel):
    """Of the rows graded so far, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class RunFault(BaseModel):
    code: str
    message: str


class EvalRunBody(BaseModel):
    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    created_at: int
    status: RunStatus
    name: str
    model: str
    report_url: str
    metadata: dict[str, str]
    data_source: dict[str, Any]
    error: RunFault | None
    result_counts: ResultCounts
    per_model_usage: list[Usage]
    per_testing_criteria_results: list[CriterionResult]
    pass_rate: PassRate | None


class ItemResult(BaseModel):
    name: str
    type: str
    score: float
    passed: bool
    sample: dict[str, Any] | None = None
    error: str | None = None  # ours: why a grader gave no score


class EvalItemBody(BaseModel):
    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    run_id: str
    eval_id: str
    created_at: int
    status: ItemStatus
    datasource_item_id: int
    datasource_item: dict[str, Any]
    results: list[ItemResult]
    sample: dict[str, Any]


class Page(BaseModel):
    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class EvalPage(Page):
    data: list[EvalBody]


class EvalRunPage(Page):
    data: list[EvalRunBody]


class EvalItemPage(Page):
    data: list[EvalItemBody]


class EvalDeleted(BaseModel):
    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: bool
    eval_id: str


class RunDeleted(BaseModel):
    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: bool
    run_id: str
