"""OpenAI's graders as bodies: what each kind says, and what `validate` and `run` are asked and answer.

Not here: grading (serve.graders), routes. What would change a score and cannot be done is refused by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunesmith.serve.wire.body import Wire

MAX_SOURCE_BYTES = 256 * 1024
MAX_GRADERS = 32
Metric = Literal[
    "fuzzy_match", "bleu", "gleu", "meteor", "cosine",
    "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
]  # fmt: skip
Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=1_000_000)]


class TextPart(Wire):
    """Images and audio are not read by the models served here."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class TemplateMessage(Wire):
    """A turn whose text may hold variables."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | TextPart | list[Text | TextPart]
    type: Literal["message"] | None = None

    @property
    def text(self) -> str:
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "".join(part if isinstance(part, str) else part.text for part in parts)


class StringCheck(Wire):
    type: Literal["string_check"]
    name: Name
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]
    id: str | None = None


class TextSimilarity(Wire):
    type: Literal["text_similarity"]
    name: Name = "text_similarity"
    input: Text
    reference: Text
    evaluation_metric: Metric
    pass_threshold: float | None = None
    id: str | None = None


class PythonSource(Wire):
    """`source` defines `grade(sample, item)`, which returns a number."""

    type: Literal["python"]
    name: Name
    source: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_BYTES)]
    image_tag: str | None = None
    pass_threshold: float | None = None
    id: str | None = None


class JudgeSampling(Wire):
    """How the judging model answers; greedy unless asked otherwise, so that a score repeats."""

    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_completions_tokens: int | None = Field(None, ge=1)
    reasoning_effort: Literal["none"] | None = None


class ScoreModel(Wire):
    type: Literal["score_model"]
    name: Name
    model: str
    input: Annotated[list[TemplateMessage], Field(min_length=1)]
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    sampling_params: JudgeSampling | None = None
    pass_threshold: float | None = None
    id: str | None = None

    @property
    def span(self) -> tuple[float, float]:
        low, high = self.range or (0.0, 1.0)
        return low, high

    @model_validator(mode="after")
    def _check_range(self) -> ScoreModel:
        low, high = self.span
        if not low < high:
            raise ValueError(f"the range must rise, and {low} is not below {high}")
        return self


class LabelModel(Wire):
    type: Literal["label_model"]
    name: Name
    model: str
    input: Annotated[list[TemplateMessage], Field(min_length=1)]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    passing_labels: list[str]
    sampling_params: JudgeSampling | None = None
    id: str | None = None

    @model_validator(mode="after")
    def _check_labels(self) -> LabelModel:
        if unknown := set(self.passing_labels) - set(self.labels):
            raise ValueError(f"passing_labels names {sorted(unknown)}, which are not among the labels")
        return self


Part = Annotated[
    StringCheck | TextSimilarity | PythonSource | ScoreModel | LabelModel,
    Field(discriminator="type"),
]


class Multi(Wire):
    """`graders` is an object of graders by name; a single grader counts as one under its own name."""

    type: Literal["multi"]
    name: Name
    graders: dict[str, Part] = Field(min_length=1, max_length=MAX_GRADERS)
    calculate_output: Annotated[str, Field(min_length=1)]
    id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        inner = values.get("graders") if isinstance(values, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("type"), str):
            return values | {"graders": {str(inner.get("name")): inner}}
        return values

    @model_validator(mode="after")
    def _check_names(self) -> Multi:
        if bad := [name for name in self.graders if not re.fullmatch(r"[^\W\d]\w*", name)]:
            raise ValueError(f"a formula cannot name the graders {bad}: use letters, digits and _")
        return self


Grader = Annotated[
    StringCheck | TextSimilarity | PythonSource | ScoreModel | LabelModel | Multi,
    Field(discriminator="type"),
]


class ValidateRequest(Wire):
    grader: Grader


class GraderBody(BaseModel):
    grader: dict[str, Any]


class RunRequest(Wire):
    grader: Grader
    model_sample: Text
    item: dict[str, Any] | None = None


class Faults(BaseModel):
    """What went wrong while grading; `reward` is 0 where anything did."""

    model_config = ConfigDict(protected_namespaces=())

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_server_error_details: str | None = None
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False


class RunMetadata(BaseModel):
    name: str
    type: str
    errors: Faults
    error_details: str | None = None  # ours: in words, whichever kind it is
    execution_time: float
    scores: dict[str, float]
    token_usage: int | None
    sampled_model_name: str | None


class RunBody(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    reward: float
    sub_rewards: dict[str, float]
    metadata: RunMetadata
    model_grader_token_usage_per_model: dict[str, int]
