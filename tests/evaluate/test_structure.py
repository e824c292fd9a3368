"""JSON is compared as a person would: numbers and dates by meaning, lists as sets, calls by name and arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.contenders import Fixed
from tunesmith.chat import Example, Message
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.scorers.score import Asked
from tunesmith.evaluate.scorers.structure import read_calls
from tunesmith.evaluate.scorers.values import plain_value
from tunesmith.turns import ToolCall


def example(answer: str) -> Example:
    return Example((Message("user", "q"), Message("assistant", answer, trained=True)))


def reply(text: str) -> Reply:
    return Reply(text, 1, 1, 0.1, "stop")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (12.5, "12.50", True),
        (1200, "1,200", True),
        ("007", 7, False),
        ("1e5", 100000, False),
        (True, 1, False),
        ("true", True, False),
        (0, "-0", True),
        (12345678901234567890, "12345678901234567890", True),
        (0.1 + 0.2, 0.3, False),
        ("2024-03-05", "5 March 2024", True),
        ("2024-03-05", "March 5, 2024", True),
        ("2024-03-05", "05.03.2024", True),
        ("2024-03-05", "2024-03-05T00:00:00Z", True),
        ("2024-04-13", "13/04/2024", True),
        ("2024-04-13", "4/13/2024", True),
        ("2024-04-03", "03/04/2024", False),
        ("2024-02-30", "30 February 2024", False),
        (" Paris ", "Paris", True),
        ("Paris", "paris", False),
    ],
)
def test_a_leaf_equals_what_means_the_same_and_nothing_else(one: object, other: object, same: bool) -> None:
    assert (plain_value(one) == plain_value(other)) is same


@settings(max_examples=50)
@given(st.integers(-(10**12), 10**12))
def test_a_number_is_the_same_with_thousands_separators_and_zeros(number: int) -> None:
    assert (
        plain_value(number) == plain_value(f"{number:,}") == plain_value(f"{number}.00") == plain_value(float(number))
    )


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 5) | st.text(max_size=3), max_size=6).flatmap(
        lambda x: st.tuples(st.just(x), st.permutations(x))
    )
)
def test_fields_do_not_mind_the_order_of_a_list(lists: tuple[list[object], list[object]]) -> None:
    wanted, got = (json.dumps({"a": items}) for items in lists)
    assert make_scorer("json_fields")(example(wanted), reply(got)).value == 1


def test_the_fields_of_all_rows_have_precision_recall_and_f1() -> None:
    """Row 1: city right, day wrong. Row 2: no JSON. Right 1, expected 4, replied 2."""
    rows = [example('{"city": "Rome", "day": "2024-03-05"}'), example('{"city": "Bonn", "day": "2024-03-06"}')]
    replies = [reply('{"city": "Rome", "day": "2024-03-07"}'), reply("Bonn")]
    scored = make_scorer("json_fields").score_rows(Asked(rows, replies, Fixed("x", []), replies))
    figures = scored.aggregate.figures
    assert (figures["precision"].mean, figures["recall"].mean) == (0.5, 0.25)
    assert figures["f1"].mean == pytest.approx(2 / 6)
    assert scored.aggregate.tables["fields"] == [
        {"field": "day", "expected": 2, "precision": 0.0, "recall": 0.0, "f1": 0.0},
        {"field": "city", "expected": 2, "precision": 1.0, "recall": 0.5, "f1": 2 / 3},
    ]
    assert scored.scores[0].why.endswith("day should be '2024-03-05'")


def test_without_a_reply_in_json_there_is_no_precision_and_it_is_said() -> None:
    rows, replies = [example('{"city": "Rome"}')], [reply("Rome")]
    aggregate = make_scorer("json_fields").score_rows(Asked(rows, replies, Fixed("x", []), replies)).aggregate
    assert set(aggregate.figures) == {"recall", "f1"} and aggregate.sentences
    json.dumps(aggregate.as_dict(), allow_nan=False)


def test_a_schema_says_where_the_reply_breaks_it(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    scorer = make_scorer(f"json_schema:{file}")
    assert scorer(example("x"), reply('{"n": 1}')).value == 1
    assert scorer(example("x"), reply('{"n": "1"}')).why == "at $.n: '1' is not of type 'integer'"
    file.write_text('{"type": "thing"}')
    with pytest.raises(InputError, match="is no JSON Schema"):
        make_scorer(f"json_schema:{file}")


CALL = ToolCall("book", '{"city": "Rome", "nights": 2}')


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            '[{"type": "function", "function": {"name": "book", '
            '"arguments": "{\\"nights\\": 2, \\"city\\": \\"Rome\\"}"}}]',
            1,
        ),
        ('{"name": "book", "parameters": {"city": "Rome", "nights": "2"}}', 1),
        ('Sure.\n<tool_call>\n{"name": "book", "arguments": {"city": "Rome", "nights": 2}}\n</tool_call>', 1),
        ('{"name": "book", "arguments": {"city": "Bonn", "nights": 2}}', 0.5),
        ('{"name": "cancel", "arguments": {"city": "Rome", "nights": 2}}', 0),
        ("I have booked it.", 0),
        ('<tool_call>{"name": "book", "arguments": {}}</tool_call><tool_call>broken</tool_call>', 0),
    ],
)
def test_a_call_is_right_by_its_name_and_arguments(text: str, wanted: float) -> None:
    row = Example((Message("user", "q"), Message("assistant", "", trained=True, tool_calls=(CALL,))))
    assert make_scorer("tool_call")(row, reply(text)).value == wanted


def test_a_row_without_a_call_is_refused() -> None:
    with pytest.raises(InputError, match="calls no tool"):
        make_scorer("tool_call").check(example("hello"))


@settings(max_examples=100)
@given(
    st.text(max_size=40)
    | st.recursive(
        st.none() | st.text(max_size=3),
        lambda x: (
            st.lists(x, max_size=2) | st.dictionaries(st.sampled_from(["name", "arguments", "function"]), x, max_size=2)
        ),
    ).map(json.dumps)
)
def test_reading_calls_never_raises(text: str) -> None:
    read_calls(text)
