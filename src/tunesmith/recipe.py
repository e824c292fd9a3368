"""Recipe: the typed, complete description of a run. YAML in, frozen JSON out, unknown keys refused.

Not here: what "auto" becomes, which depends on the data and the base (train.settings).
Read by train and by `tunesmith init`, which writes one with every field and its text as a comment.
"""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunesmith.errors import InputError

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(gt=0)]
EMBEDDED_BASE = "smollm2-135m-instruct"


class Recipe(BaseModel):
    """Every field has one text, used by the errors, by `tunesmith init` and by the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str = Field(
        description="the training file (JSONL: 'messages', or 'prompt' and 'completion'; dpo: pairs of answers)"
    )
    validation: str | None = Field(
        None, description="a file to watch the loss on; without one, rows are split off the training file"
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="the share of rows split off when there is no validation file"
    )
    base: str = Field(
        EMBEDDED_BASE, description="the base model: a folder, a Hugging Face name, or the embedded default"
    )
    method: Literal["lora", "rslora", "dora", "qlora", "full", "dpo"] = Field(
        "lora",
        description="what is trained: an adapter (lora; rslora, dora: variants; qlora: on a base in 4 bits), "
        "full: all weights; dpo: a LoRA adapter, on pairs of answers of which one is preferred",
    )
    beta: float = Field(
        0.1, gt=0, le=2, description="dpo: how closely the adapter is held to the base; smaller: it may go further"
    )
    rank: Count | Auto = Field("auto", description="LoRA rank; auto: 16, or 32 above 10,000 rows")
    alpha: Amount | Auto = Field("auto", description="LoRA alpha; auto: twice the rank; rslora: 8")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout")
    targets: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear", description="which layers get an adapter: all-linear, or a list of names"
    )
    learning_rate: Amount | Auto = Field(
        "auto", description="peak learning rate; auto: by model size; full: a tenth of an adapter's, dpo: a twentieth"
    )
    warmup_steps: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="steps of linear warm-up; auto: 3 % of the steps, at least 5"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    epochs: Count | Auto = Field(
        "auto",
        description="passes over the data; auto: 4 to 200 rows, 3 to 2,000, 2 to 20,000, then 1; "
        "dpo: 2 to 2,000, then 1",
    )
    batch_size: int = Field(16, ge=1, description="rows per optimiser step")
    micro_batch_tokens: Annotated[int, Field(ge=64)] | Auto = Field(
        "auto", description="tokens laid out at once: memory, not the result, depends on it; auto: what fits and pays"
    )
    max_length: Annotated[int, Field(ge=2)] | Auto = Field(
        "auto", description="rows with more tokens are dropped, with a ledger entry; auto: the base's context"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen base; auto: the faster one, measured; full: float32"
    )
    validations_per_epoch: int = Field(
        2, ge=1, description="how often the validation loss is measured and a checkpoint saved"
    )
    kept_epochs: int = Field(
        0, ge=0, description="checkpoints of so many last epochs' ends to keep, beside the newest two and the best"
    )
    patience: Count | None = Field(3, description="stop after this many validations without a better loss; null: never")
    seed: int = Field(0, ge=0, description="of the split, the order of the rows and the adapter's start")
    threads: Count | Auto = Field("auto", description="processor threads; auto: the cores this process may use")
    loss_by_example: bool = Field(False, description="write the loss of every example to example_losses.jsonl")
    trackers: list[Literal["tensorboard", "mlflow", "wandb", "trackio"]] = Field(
        [], description="where metrics go besides metrics.jsonl: any of tensorboard, mlflow, wandb, trackio"
    )

    @model_validator(mode="after")
    def _nothing_idle(self) -> Recipe:
        """A key that the method does not use must not look as if it did something."""
        if self.method != "dpo" and self.beta != type(self).model_fields["beta"].default:
            raise ValueError(f"beta belongs to the method 'dpo', and the method is {self.method!r}: remove it.")
        if self.method == "full":
            keys = ("rank", "alpha", "dropout", "targets")
            idle = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if idle:
                raise ValueError(f"{', '.join(idle)} belong to an adapter, and method 'full' trains none: remove them.")
            if self.precision == "bfloat16":
                raise ValueError("method 'full' trains float32 weights: remove precision, or set it to float32.")
        return self


def recipe_from(values: dict[str, Any], *, source: str) -> Recipe:
    """Check `values` and return a Recipe. Raises InputError listing every problem, the nearest key for a typo."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise InputError(
            f"{source}: " + "\n".join(lines), "`tunesmith init FILE` writes a recipe with every key."
        ) from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a YAML recipe or sweep, unchecked. Raises InputError with the line for broken YAML."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML: {error}", "Mend that line.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no keys.", "`tunesmith init FILE` writes a recipe to start from.")
    return values


def sweep_recipes(values: dict[str, Any], *, given: dict[str, Any], source: str) -> dict[str, Recipe]:
    """A recipe for every combination of the lists under the key `sweep`, by a name such as `rank-8_seed-1`.

    What the sweep varies replaces the file's own value; `given` does too, and may not vary as well.
    Raises InputError as `recipe_from`, and for what is no sweep.
    """
    varied = values["sweep"]
    if not (isinstance(varied, dict) and varied and all(isinstance(one, list) and one for one in varied.values())):
        todo = "As in sweep: {rank: [8, 16]}."
        raise InputError(f"{source}: 'sweep' is {varied!r}; it needs a list for each key that varies.", todo)
    if varied.keys() & given.keys():
        both = ", ".join(sorted(varied.keys() & given.keys()))
        raise InputError(f"{both} is given on the command line, and {source} varies it.", "Leave one out.")
    fixed = {key: value for key, value in values.items() if key != "sweep"} | given
    recipes: dict[str, Recipe] = {}
    for combination in itertools.product(*varied.values()):
        chosen = dict(zip(varied, combination, strict=True))
        recipe = recipe_from(fixed | chosen, source=f"{source}: sweep {chosen}")
        name = "_".join(f"{key}-{_as_name(getattr(recipe, key))}" for key in varied)
        if name in recipes:
            raise InputError(f"{source}: two combinations of the sweep are called {name}.", "Remove one.")
        recipes[name] = recipe
    return recipes


def _as_name(value: Any) -> str:
    """A value as part of a folder's name."""
    text = "+".join(value) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")


def recipe_yaml(values: dict[str, Any], *, heading: str) -> str:
    """A commented YAML recipe: the given values, every other field at its default."""
    lines = [f"# {line}" for line in heading.splitlines()]
    for name, field in Recipe.model_fields.items():
        value = values.get(name, field.default)
        text = yaml.safe_dump({name: value}, allow_unicode=True, default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{text}  # {field.description}")
    return "\n".join(lines) + "\n"


def _explain(problem: Any) -> str:
    if not problem["loc"]:  # of the recipe as a whole
        return str(problem["ctx"]["error"])
    key = ".".join(str(part) for part in problem["loc"][:1])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Recipe.model_fields, n=1)
        return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else ".")
    if problem["type"] == "missing":
        return f"'{key}' is missing: {Recipe.model_fields[key].description}."
    return f"'{key}' is {problem['input']!r}: {problem['msg'].lower()}."
