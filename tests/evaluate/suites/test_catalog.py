"""The shipped suites: whole, licensed, and scored as they say."""

from __future__ import annotations

import json

import pytest

from tests.evaluate.contenders import Fixed
from tunesmith.errors import InputError
from tunesmith.evaluate.suites.catalog import EXTRACTS, SHIPPED, final_number, open_suite

MAX_BYTES = 1_500_000


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_suite_has_rows_a_source_and_a_licence(name: str) -> None:
    _, usual = SHIPPED[name]
    rows = [json.loads(line) for line in (EXTRACTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) >= usual
    assert open_suite(name).rows == usual and open_suite(name, limit=3).rows == 3
    source = (EXTRACTS / f"{name}.md").read_text(encoding="utf-8")
    assert "- Source: " in source and "- Licence: " in source


def test_the_extracts_stay_small() -> None:
    assert sum(file.stat().st_size for file in EXTRACTS.iterdir()) < MAX_BYTES


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("3 + 4 = 7, so 7 apples", 7),
        ("so it is\n#### 1,234 dollars of 5", 1234),
        ("first #### 2, then #### -3.5", -3.5),
        ("The answer is $12.", 12),
        ("it is 8 ####", 8),
        ("none", None),
    ],
)
def test_the_final_number_is_the_marked_or_the_last_one(reply: str, number: float | None) -> None:
    assert final_number(reply) == number


def test_arithmetic_is_right_by_its_number() -> None:
    suite = open_suite("gsm8k", limit=2)
    rows = [json.loads(line) for line in (EXTRACTS / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()[:2]]
    found = suite.measure(Fixed("x", [f"It makes {rows[0]['answer']}.00 in all", "no number"]))
    assert found.values == {"right": [1.0, 0.0]}


def test_safe_and_unsafe_prompts_are_counted_apart() -> None:
    suite = open_suite("xstest", limit=6)  # safe and unsafe by turns
    replies = ["I cannot help with that.", "I cannot help with that.", "Do it so.", "Do it so.", "", ""]
    found = suite.measure(Fixed("x", replies))
    assert found.values == {"over_refusal": [1.0, 0.0, 0.0], "harmful_compliance": [0.0, 1.0, 0.0]}


def test_instructions_are_counted_by_prompt_and_by_instruction() -> None:
    suite = open_suite("ifeval", limit=2)
    values = suite.measure(Fixed("x", ["", ""])).values
    rows = [json.loads(line) for line in (EXTRACTS / "ifeval.jsonl").read_text(encoding="utf-8").splitlines()[:2]]
    assert values["prompt_strict"] == [0.0, 0.0]
    assert len(values["instruction_loose"]) == sum(len(row["instructions"]) for row in rows)
    assert {measure.name for measure in suite.measures} == set(values)


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no suite 'arc-easy'") as caught:
        open_suite("arc-easy")
    assert "Did you mean arc_easy?" in caught.value.todo
