"""Hyperparameters on the wire: OpenAI's and our own in the same object, each checked by name and range.

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
# OpenAI's for preferences, beside those three.
DPO: Mapping[str, tuple[Any, str]] = {
    "beta": (
        Annotated[float, Field(gt=0, le=2)] | Auto,
        'a number above 0 and at most 2, or "auto"; the smaller, the further from the base',
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


def check_hyperparameters(asked: Mapping[str, Any], *, dpo: bool = False) -> dict[str, Any]:
    """The same values, each of its type. Raises ValueError for the first that is unknown or out of its range."""
    checked = {}
    known = _names(dpo=dpo)
    for name, value in asked.items():
        if name in DPO and not dpo:
            raise ValueError(f"{name} is a hyperparameter of the method dpo alone: remove it")
        if name not in known:
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
    names = {**standard, **{name: name for name in DPO}, **EXTRAS}
    keys = {key: asked[name] for name, key in names.items() if name in asked}
    return {key: value for key, value in keys.items() if not (key in ("batch_size", "beta") and value == "auto")}


def hyperparameters_schema(*, dpo: bool = False) -> dict[str, Any]:
    """For the OpenAPI description."""
    properties = {}
    for name in _names(dpo=dpo):
        properties[name] = {**_adapter(name).json_schema(), "description": _words(name)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _names(*, dpo: bool) -> list[str]:
    return [*STANDARD, *(DPO if dpo else ()), *EXTRAS]


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    if name in STANDARD or name in DPO:
        return TypeAdapter({**STANDARD, **DPO}[name][0])
    field = Recipe.model_fields[EXTRAS[name]]
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind)


def _words(name: str) -> str:
    if name in STANDARD or name in DPO:
        return {**STANDARD, **DPO}[name][1]
    return f"as the recipe's {EXTRAS[name]!r} ({Recipe.model_fields[EXTRAS[name]].description})"
