"""The user's own suites: every row that cannot be used is named, the rest asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.chat import Example, Message
from tunesmith.errors import DataError, InputError
from tunesmith.evaluate.choices import Question
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.suites.own import choice_suite, example_suite, holds_choices, parse_choices
from tunesmith.evaluate.suites.suite import ChoiceSuite


def test_a_question_is_read_with_its_answer_as_a_place_or_a_text(tmp_path: Path) -> None:
    rows = [
        {"question": " Which? ", "choices": ["a", "b"], "answer": 1},
        {"question": "Who?", "choices": ["me", "you", "2"], "answer": "you"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    suite = choice_suite(path)
    assert holds_choices(path) and isinstance(suite, ChoiceSuite) and suite.name == "mine"
    assert suite.questions == [
        Question("Question: Which?\nAnswer:", ("a", "b"), 1),
        Question("Question: Who?\nAnswer:", ("me", "you", "2"), 1),
    ]
    assert choice_suite(path, limit=1).rows == 1


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{", "the line is no JSON"),
        ("[1]", "holds a list"),
        ('{"choices": ["a", "b"], "answer": 0}', "'question' is no text"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "'choices' cannot be used"),
        ('{"question": "q", "choices": ["a", "a"], "answer": 0}', "'choices' cannot be used"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "'answer' is none of the 2 choices"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "'answer' is none of the 2 choices"),
        ('{"question": "q", "choices": ["a", "b"]}', "'answer' is none of the 2 choices"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "q", "choices": ["a", "b"], "answer": 0}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=fault) as caught:
        choice_suite(path)
    assert caught.value.problems[0].line == 2


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=6))
def test_any_values_give_a_question_or_a_fault(value: object) -> None:
    for key in ("question", "choices", "answer"):
        row = {"question": "q", "choices": ["a", "b"], "answer": 0, key: value}
        question, fault = parse_choices(json.dumps(row))
        assert (question is None) != (fault is None)


def test_other_files_hold_no_choices(tmp_path: Path) -> None:
    for name, text in {"chat.jsonl": '{"messages": []}\n', "table.csv": "a,b\n1,2\n", "empty": ""}.items():
        (tmp_path / name).write_text(text)
        assert not holds_choices(tmp_path / name)


def test_rows_with_expected_answers_are_scored_by_the_scorer() -> None:
    rows = [label_example("q1", "card"), label_example("q2", "refund")]
    suite = example_suite("mine", rows, scorer=make_scorer("contains"), how="contains", max_new_tokens=4)
    assert suite.measure(Fixed("x", ["the card", "no"])).values == {"contains": [1.0, 0.0]}
    for bad in ([], [Example((Message("user", "q"),))]):
        with pytest.raises(InputError):
            example_suite("mine", bad, scorer=make_scorer("exact"), how="exact", max_new_tokens=4)
