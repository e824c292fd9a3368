"""Recipes: every problem at once, the nearest key for a typo, the written file reads back, and no setting is idle."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tunesmith
from tunesmith.errors import InputError
from tunesmith.recipe import Recipe, read_recipe, recipe_from, recipe_yaml
from tunesmith.train.settings import Settings

SOURCE = Path(tunesmith.__file__).parent


def read(path: Path) -> Recipe:
    return recipe_from(read_recipe(path), source=str(path))


@pytest.mark.parametrize(
    ("key", "near"), [("learning_rte", "learning_rate"), ("epoch", "epochs"), ("batchsize", "batch_size")]
)
def test_an_unknown_key_names_the_nearest_one(key: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"r\.yaml: unknown key '{key}'; did you mean '{near}'\?"):
        recipe_from({"data": "d", key: 1}, source="r.yaml")


def test_a_key_like_no_other_names_none() -> None:
    with pytest.raises(InputError, match=r"unknown key 'zzz'\."):
        recipe_from({"data": "d", "zzz": 1}, source="r.yaml")


def test_every_problem_is_named_at_once() -> None:
    values = {"epochz": 1, "rank": "many", "dropout": 2, "batch_size": 0, "seed": -1, "precision": "int4"}
    with pytest.raises(InputError) as caught:
        recipe_from(values, source="r.yaml")
    text = str(caught.value)
    for word in (
        "'data' is missing: the training file",
        "epochz",
        "rank",
        "dropout",
        "batch_size",
        "seed",
        "precision",
    ):
        assert word in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["- a\n- b\n", "data: [1\n", "", "just words"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=r"r\.yaml"):
        read(tmp_path / "r.yaml")


def test_a_recipe_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml"):
        read(tmp_path / "none.yaml")
    (tmp_path / "r.yaml").write_bytes(b"data: \xff")
    with pytest.raises(InputError, match="not readable YAML"):
        read(tmp_path / "r.yaml")


def test_a_number_in_yaml_may_be_written_as_people_write_it(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: d\nlearning_rate: 1e-3\nalpha: 32\nwarmup_steps: 0\npatience: null\n")
    recipe = read(tmp_path / "r.yaml")
    assert (recipe.learning_rate, recipe.alpha, recipe.warmup_steps, recipe.patience) == (0.001, 32.0, 0, None)


VALUES = st.fixed_dictionaries(
    {"data": st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1)},
    optional={
        "validation": st.sampled_from(["v.jsonl", "null", "yes", "a: b # c"]),
        "rank": st.just("auto") | st.integers(1, 64),
        "learning_rate": st.just("auto") | st.floats(1e-9, 1.0),
        "targets": st.just("all-linear") | st.lists(st.sampled_from(["q_proj", "v_proj"]), min_size=1),
        "patience": st.none() | st.integers(1, 9),
        "epochs": st.just("auto") | st.integers(1, 9),
        "weight_decay": st.floats(0, 1e-3),
    },
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_a_written_recipe_reads_back_as_the_same(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(recipe_yaml(values, heading="Two\nlines"), encoding="utf-8")
    assert read(path) == recipe_from(values, source="test")


def test_a_written_recipe_has_every_key_with_its_text() -> None:
    text = recipe_yaml({"data": "d"}, heading="h")
    for name, field in Recipe.model_fields.items():
        assert re.search(rf"^{name}: .*  # {re.escape(str(field.description))}$", text, re.MULTILINE), name


NAN, INF = float("nan"), float("inf")
USELESS = [("rank", 0), ("epochs", 0), ("learning_rate", 0), ("learning_rate", NAN), ("learning_rate", INF)]
USELESS += [("warmup_steps", -1), ("alpha", 0), ("threads", 0), ("max_length", 0), ("patience", 0), ("targets", [])]
USELESS += [("max_grad_norm", NAN), ("weight_decay", INF)]


@pytest.mark.parametrize(("key", "value"), USELESS)
def test_a_value_that_cannot_train_is_refused_before_anything_runs(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"'{key}' is"):
        recipe_from({"data": "d", key: value}, source="r.yaml")


def _read_names(variable: str, *, leave_out: str = "") -> set[str]:
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != leave_out)
    return set(re.findall(rf"\b{variable}\.(\w+)", text))


def test_every_key_of_a_recipe_is_read_somewhere() -> None:
    assert set(Recipe.model_fields) - _read_names("recipe", leave_out="recipe.py") == set()


def test_every_setting_is_read_somewhere() -> None:
    assert {field.name for field in fields(Settings)} - _read_names("settings") == set()
