"""Hyperparameters on the wire: OpenAI's three and our own in the same object, each checked by name and range.

Not here: what "auto" becomes (jobs.validation). Our own are keys of a recipe under the names of `EXTRAS`; an unknown
key is refused with the nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from tunesmith.errors import did_you_mean
from tunesmith.recipe import Recipe

Auto = Literal["auto"]

# OpenAI's: type and what it may be, in words.
STANDARD: Mapping[str, tuple[Any, str]] = {
    "n_epochs": (Annotated[int, Field(ge=1, le=50)] | Auto, 'a whole number from 1 to 50, or "auto"'),
    "batch_size": (Annotated[int, Field(ge=1, le=256)] | Auto, 'a whole number from 1 to 256, or "auto"'),
    "learning_rate_multiplier": (
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | Auto,
        'a number above 0, or "auto"; it multiplies the automatic learning rate',
    ),
}
# Ours: the recipe's key that each stands for.
EXTRAS: Mapping[str, str] = {
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_targets": "targets",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "max_length": "max_length",
    "patience": "patience",
    "validation_fraction": "validation_fraction",
    "validations_per_epoch": "validations_per_epoch",
    "micro_batch_tokens": "micro_batch_tokens",
    "threads": "threads",
}


def check_hyperparameters(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, each of its type. Raises ValueError for the first that is unknown or out of its range."""
    checked = {}
    for name, value in asked.items():
        if name not in STANDARD and name not in EXTRAS:
            known = [*STANDARD, *EXTRAS]
            raise ValueError(f"there is no hyperparameter {name!r}. {did_you_mean(name, known, what='names')}")
        try:
            checked[name] = _adapter(name).validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"{name} is {value!r}: it must be {_words(name)}") from error
    if checked.get("learning_rate", "auto") != "auto" and "learning_rate_multiplier" in checked:
        raise ValueError("learning_rate and learning_rate_multiplier contradict each other: leave one out")
    return checked


def recipe_keys(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What of the hyperparameters is a recipe's key as it stands: all but the multiplier."""
    standard = {"n_epochs": "epochs", "batch_size": "batch_size"}
    keys = {key: asked[name] for name, key in {**standard, **EXTRAS}.items() if name in asked}
    if keys.get("batch_size") == "auto":
        del keys["batch_size"]
    return keys


def hyperparameters_schema() -> dict[str, Any]:
    """For the OpenAPI description."""
    properties = {}
    for name in (*STANDARD, *EXTRAS):
        properties[name] = {**_adapter(name).json_schema(), "description": _words(name)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    if name in STANDARD:
        return TypeAdapter(STANDARD[name][0])
    field = Recipe.model_fields[EXTRAS[name]]
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind)


def _words(name: str) -> str:
    if name in STANDARD:
        return STANDARD[name][1]
    return f"as the recipe's {EXTRAS[name]!r} ({Recipe.model_fields[EXTRAS[name]].description})"
