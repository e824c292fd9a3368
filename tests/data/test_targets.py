"""Faults of JSON answers stand out against what the file itself usually does; a file without a habit has no faults."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.rows import rows_of
from tunesmith.data.checks.copied import Passage
from tunesmith.data.checks.targets import target_findings

NAMES = [f"{first} {last}" for first in ("Ada", "Bo", "Cy", "Di", "Eve") for last in ("Ash", "Bell", "Cole", "Dunn")]


def target(name: str, **other: object) -> str:
    return json.dumps(
        {"kind": "person", "slots": {"name": name, "size": "2", "tags": ["x", "y"]}, "sure": True} | other
    )


SOUND = [(f"Book a table for 2 under {name}", target(name)) for name in NAMES]


def found_in(*pairs: tuple[str, str]) -> list[tuple[int | None, str]]:
    return [(found.line, found.issue) for found in target_findings(rows_of(*pairs))]


def test_sound_targets_have_no_findings() -> None:
    assert found_in(*SOUND) == []


@pytest.mark.parametrize(
    "answer",
    [target("Flo")[:-1], target("Flo") + "}", target("Flo").replace('"', "'"), '{"a": 1,}', "person: Flo", "[1]",
     f"Here it is: {target('Flo')}", '{"a":' * 100_000],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_found(answer: str) -> None:
    assert found_in(*SOUND, ("Book a table for 2 under Flo", answer)) == [(21, "target_json_invalid")]


@pytest.mark.parametrize("value", [["Flo"], {"first": "Flo"}, None, 7, True])
def test_a_value_of_another_type_is_found(value: object) -> None:
    answer = target("Flo", slots={"name": value, "size": "2", "tags": ["x", "y"]})
    assert found_in(*SOUND, ("Book a table for 2 under Flo", answer)) == [(21, "target_type_mismatch")]


def test_a_field_that_holds_one_or_several_values_may_be_a_list() -> None:
    several = json.dumps({"name": ["Flo", "Gus"], "city": ["Rome", "Oslo"]})
    rows = [(f"{name} in Rome", json.dumps({"name": name, "city": "Rome"})) for name in NAMES]
    assert found_in(*rows, ("Flo and Gus in Rome and Oslo", several)) == []


def test_a_value_that_the_text_does_not_hold_is_found_where_the_others_are_copied() -> None:
    assert found_in(*SOUND, ("Book a table for 2 under Flo Moor", target("Max Cole"))) == [(21, "value_not_in_text")]
    free = [(f"Tell me about {n}", json.dumps({"title": f"{chr(97 + n) * 4}", "n": n})) for n in range(20)]
    assert found_in(*free) == []


def test_text_with_braces_is_no_json_file() -> None:
    assert found_in(*[("Write code", f"int f{n}() {{ return {n}; }}") for n in range(30)]) == []


def test_a_category_that_does_not_fit_the_text_is_a_wrong_label() -> None:
    asked = {"weather": "Will it rain or snow in the city of {}", "music": "Play a song by the singer {}"}
    rows = [
        (text.format(name), json.dumps({"intent": kind, "who": name})) for name in NAMES for kind, text in asked.items()
    ]
    rows[3] = (rows[3][0], rows[3][1].replace("music", "weather"))
    assert found_in(*rows) == [(4, "wrong_label")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("New York", "in NEW york, please"),
        ("1 1/2", "1\u00bd cups"),
        ("0.5", "\u00bd cup"),
        ("2/3", "0.667 of it"),
        ("3", "three of them"),
        ("12", "a dozen eggs"),
        ("onion", "2 onions"),
        ("cup g", "1 cup (200g)"),
        ("2021-05-03", "on May 3, 2021"),
        ("restaurant", "a resturant"),
        ("\u6771\u4eac", "\u6771\u4eac\u3067"),
        ("?", "what"),
    ],
)
def test_a_value_is_recognised_in_another_form(value: str, text: str) -> None:
    assert Passage(text).holds(value) == (value != "?")


@pytest.mark.parametrize(
    ("value", "text"), [("4", "14 eggs"), ("Paris", "in Rome"), ("2/3", "1/3 cup"), ("cat", "car")]
)
def test_another_value_is_not(value: str, text: str) -> None:
    assert not Passage(text).holds(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=20), st.dictionaries(st.text(max_size=2), JSON, max_size=3))))
def test_no_object_is_too_odd_to_be_looked_at(targets: list[tuple[str, dict[str, object]]]) -> None:
    rows = [(text, json.dumps(value)) for text, value in targets] * 3
    assert {issue for _, issue in found_in(*rows)} <= {"target_type_mismatch", "value_not_in_text", "wrong_label"}
