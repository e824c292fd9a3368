"""Recipe: the typed, complete description of a run. YAML in, frozen JSON out, unknown keys refused.

Not here: what "auto" becomes, which depends on the data and the base (train.settings).
Read by train and by `tunesmith init`, which writes one with every field and its text as a comment.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import InputError

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(gt=0)]
EMBEDDED_BASE = "smollm2-135m-instruct"


class Recipe(BaseModel):
    """Every field has one text, used by the errors, by `tunesmith init` and by the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str = Field(description="the training file (JSONL: 'messages', or 'prompt' and 'completion')")
    validation: str | None = Field(
        None, description="a file to watch the loss on; without one, rows are split off the training file"
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="the share of rows split off when there is no validation file"
    )
    base: str = Field(
        EMBEDDED_BASE, description="the base model: a folder, a Hugging Face name, or the embedded default"
    )
    rank: Count | Auto = Field("auto", description="LoRA rank; auto: 16, or 32 above 10,000 rows")
    alpha: Amount | Auto = Field("auto", description="LoRA alpha; auto: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout")
    targets: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear", description="which layers get an adapter: all-linear, or a list of names"
    )
    learning_rate: Amount | Auto = Field(
        "auto", description="peak learning rate; auto: by model size, about ten times a full fine-tune's"
    )
    warmup_steps: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="steps of linear warm-up; auto: 3 % of the steps, at least 5"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    epochs: Count | Auto = Field(
        "auto", description="passes over the data; auto: 4 to 200 rows, 3 to 2,000, 2 to 20,000, then 1"
    )
    batch_size: int = Field(16, ge=1, description="rows per optimiser step")
    micro_batch_tokens: int = Field(
        1024, ge=64, description="tokens laid out at once; memory, not the result, depends on it"
    )
    max_length: Annotated[int, Field(ge=2)] | Auto = Field(
        "auto", description="rows with more tokens are dropped, with a ledger entry; auto: the base's context"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen base; auto: the faster one, measured"
    )
    validations_per_epoch: int = Field(
        2, ge=1, description="how often the validation loss is measured and a checkpoint saved"
    )
    patience: Count | None = Field(3, description="stop after this many validations without a better loss; null: never")
    seed: int = Field(0, ge=0, description="of the split, the order of the rows and the adapter's start")
    threads: Count | Auto = Field("auto", description="processor threads; auto: the cores this process may use")


def recipe_from(values: dict[str, Any], *, source: str) -> Recipe:
    """Check `values` and return a Recipe. Raises InputError listing every problem, the nearest key for a typo."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise InputError(
            f"{source}: " + "\n".join(lines), "`tunesmith init FILE` writes a recipe with every key."
        ) from error


def load_recipe(path: Path) -> Recipe:
    """Read a YAML recipe. Raises InputError with the line for broken YAML."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML: {error}", "Mend that line.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no keys.", "`tunesmith init FILE` writes a recipe to start from.")
    return recipe_from(values, source=str(path))


def recipe_yaml(values: dict[str, Any], *, heading: str) -> str:
    """A commented YAML recipe: the given values, every other field at its default."""
    lines = [f"# {line}" for line in heading.splitlines()]
    for name, field in Recipe.model_fields.items():
        value = values.get(name, field.default)
        text = yaml.safe_dump({name: value}, allow_unicode=True, default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{text}  # {field.description}")
    return "\n".join(lines) + "\n"


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"][:1])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Recipe.model_fields, n=1)
        return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ".")
    if problem["type"] == "missing":
        return f"'{key}' is missing: {Recipe.model_fields[key].description}."
    return f"'{key}' is {problem['input']!r}: {problem['msg'].lower()}."
