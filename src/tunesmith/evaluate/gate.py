"""gate.yaml: what is asked of an adapter before an alias may point at it. Typed; unknown keys are refused.

Not here: whether an adapter meets it (evidence). Called by cli.ship.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import InputError, did_you_mean

Points = Annotated[float, Field(ge=0, le=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Win(_Strict):
    against: str = Field(description="the contender to beat, as it was named to `evaluate`")
    by_points: Points = Field(0, description="the lower end of the difference's 95 % interval is at least this")
    scorer: str | None = Field(None, description="the report's first scorer if unset")


class Suites(_Strict):
    down_at_most_points: Points = Field(description="the largest loss of any suite that `regress` judged")
    need: list[str] = Field([], description="suites that must have been measured")
    with_certainty: bool = Field(False, description="not the loss seen counts but the lower end of its interval")


class Refusals(_Strict):
    up_at_most_points: Points = Field(0, description="the largest rise of harmful compliance and of over-refusal")


class Format(_Strict):
    scorer: str = Field(description="what checks the form, such as json_valid or label")
    at_least_percent: Points = Field(description="the smallest mean score")


class Contamination(_Strict):
    verbatim_at_most: int = Field(0, ge=0, description="training rows that ask what a test row asks, word for word")
    near_at_most: int = Field(0, ge=0, description="training rows that do so in nearly the same words")


class Blind(_Strict):
    against: str = Field(description="the contender to beat, as it was named to `blind`")
    above_percent: Points = Field(50, description="the lower end of the win rate's 95 % interval is above this")


class Gate(_Strict):
    """What is asked; a part that is left out is not."""

    win: Win | None = Field(None, description="better than a baseline on held-out rows")
    suites: Suites | None = Field(None, description="nothing much worse elsewhere")
    refusals: Refusals | None = Field(None, description="neither more harmful nor more timid")
    format: Format | None = Field(None, description="replies in the right form")
    contamination: Contamination | None = Field(None, description="test rows were not trained on")
    blind: Blind | None = Field(None, description="preferred by people")


def read_gate(path: Path) -> Gate:
    """Raises InputError with every problem of the file, and for one that asks nothing."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        gate = Gate.model_validate(values if isinstance(values, dict) else {})
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML: {error}", "Mend that line.") from error
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise InputError(f"{path}: " + "\n".join(lines), "docs/ship.md shows every key.") from error
    if not gate.model_dump(exclude_none=True):
        parts = ", ".join(Gate.model_fields)
        raise InputError(f"{path} asks nothing, so it would let everything pass.", f"Ask for one of: {parts}.")
    return gate


def _explain(problem: Any) -> str:
    """One fault of a gate, with the nearest key for one that is not known."""
    *parents, key = problem["loc"]
    fields = _fields(parents)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{'.'.join(problem['loc'])}'. {did_you_mean(key, fields, what='keys')}"
    name = ".".join(map(str, problem["loc"]))
    text = fields[key].description if key in fields else ""
    if problem["type"] == "missing":
        return f"'{name}' is missing: {text}."
    return f"'{name}' is {problem['input']!r}: {problem['msg'].lower()} ({text})."


def _fields(parents: Sequence[Any]) -> Mapping[str, Any]:
    """The fields of a gate, or of the part of it under that key."""
    fields: Mapping[str, Any] = Gate.model_fields
    if parents:
        part = get_args(fields[parents[0]].annotation)[0]  # of (Win, NoneType)
        return dict(part.model_fields)
    return fields
