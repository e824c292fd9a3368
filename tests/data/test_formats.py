"""Rows of every format that people keep become the same Examples, and a row of another format is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, parse_row
from tunesmith.data.read.formats import FORMATS, detect, detect_file, parse, renamed, unread_keys

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
B = {"role": "assistant", "content": "Go away"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def example_of(row: dict[str, Any], format: str | None = None) -> Example:
    found = format or detect(row)
    assert found, row
    example, problems = parse(row, found)
    assert example, problems
    assert parse_row(json.loads(example.to_json())) == (example, [])
    return example


CHATS: dict[str, dict[str, Any]] = {
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "sharegpt with roles": {"conversations": [U, A]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "alpaca by its input": {"instruction": "", "input": "Hi", "output": "Hello"},
    "pairs": {"prompt": "Hi", "completion": "Hello"},
    "TRL's pairs of turns": {"prompt": [U], "completion": [A]},
}


@pytest.mark.parametrize("name", CHATS)
def test_one_conversation_in_every_format_is_one_example(name: str) -> None:
    plain, _ = parse_row({"messages": [U, A]})
    assert example_of(CHATS[name]) == plain
    assert plain and example_of({**CHATS[name], "source": "mail"}).metadata == {"source": "mail"}


def test_system_history_and_input_of_alpaca_are_turns() -> None:
    row = {"instruction": "Translate.", "input": "Haus", "output": "house", "system": "S", "history": [["a", "b"]]}
    turns = [(turn.role, turn.content) for turn in example_of(row).messages]
    assert turns == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Translate.\nHaus"),
        ("assistant", "house"),
    ]


def test_calls_and_results_of_sharegpt_are_calls_and_results() -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    turns = [
        {"from": "human", "value": "Hi"},
        call,
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "3"},
    ]
    example = example_of({"conversations": turns, "tools": '[{"name": "f"}]', "system": "S"})
    assert [turn.role for turn in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[2].tool_calls[0].arguments == '{"x":1}'
    assert example.tools[0]["function"] == {"name": "f"}


PREFERENCES: dict[str, dict[str, Any]] = {
    "OpenAI": {"input": {"messages": [U]}, "preferred_output": [A], "non_preferred_output": [B]},
    "texts": {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    "turns": {"prompt": [U], "chosen": [A], "rejected": [B]},
    "implicit prompt": {"chosen": [U, A], "rejected": [U, B]},
    "prompt twice": {"prompt": "Hi", "chosen": [U, A], "rejected": [U, B], "messages": [U, A]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "Go away"},
    },
    "alpaca": {"instruction": "Hi", "chosen": "Hello", "rejected": "Go away"},
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_in_every_format_is_one_example(name: str) -> None:
    row = PREFERENCES[name]
    assert detect(row) == "preference"
    example = example_of(row)
    assert [turn.content for turn in example.messages] == ["Hi", "Hello"]
    assert [turn.content for turn in example.rejected] == ["Go away"]
    assert [turn.trained for turn in (*example.messages, *example.rejected)] == [False, True, True]
    assert example.metadata.keys() == ({"messages"} if "messages" in row else set())


def test_tools_beside_the_input_of_an_openai_preference_are_kept() -> None:
    row = {**PREFERENCES["OpenAI"], "input": {"messages": [U], "tools": [TOOL], "parallel_tool_calls": False}}
    example = example_of(row)
    assert example.tools == (TOOL,)
    assert example.metadata == {"input": {"parallel_tool_calls": False}}


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"chosen": [U, A], "rejected": [{**U, "content": "Ho"}, B]}, "do not begin with the same turns"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": None}, "'rejected' is null"),
        ({"prompt": "Hi", "chosen": [A], "rejected": [A]}, "chosen and rejected"),
        ({"input": "Hi", "preferred_output": [A], "non_preferred_output": [B]}, "'input' is a text"),
        ({"prompt": "Ho", "chosen": [U, A], "rejected": [U, B]}, "no answer that is compared"),
    ],
)
def test_a_preference_without_its_parts_is_refused(row: dict[str, Any], word: str) -> None:
    example, problems = parse(row, "preference")
    assert example is None
    assert word in problems[0].what


def test_rows_for_reinforcement_are_seen_by_their_open_end_and_what_they_bring() -> None:
    open_row = {"messages": [U], "reference": "Hello"}
    assert detect_file([open_row, open_row]) == "rl"
    assert detect_file([open_row, {"messages": [U, A]}]) == "chat"
    assert detect_file([{"messages": [U]}]) == "chat"  # a row that lost its answer
    for row in (open_row, {"prompt": "Hi", "reference": "Hello"}, {"prompt": [U], "reference": "Hello"}):
        example = example_of(row, "rl")
        assert (example.kind, example.prompt, example.metadata) == ("rl", example.messages, {"reference": "Hello"})
    assert parse({"messages": [U, A]}, "rl")[1][0].issue == "bad_order"


def test_a_field_whose_name_is_taken_is_named_and_not_lost() -> None:
    for row, format in (
        ({"text": "a", "prompt": "b"}, "text"),
        ({"conversations": [U, A], "messages": []}, "sharegpt"),
        ({"messages": [U], "prompt": "b"}, "rl"),
        ({"messages": [U, A], "chosen": 1, "rejected": 2}, "chat"),
    ):
        example, problems = parse(row, format)
        assert example is None
        assert problems[0].issue == "mixed_format"


def test_a_text_with_a_label_is_not_taken_for_a_text_to_learn() -> None:
    assert detect({"text": "Once upon a time"}) == "text"
    assert detect({"text": "Once upon a time", "source": "book"}) == "text"
    assert detect({"text": "Where is my card?", "label": "card"}) is None


def test_a_row_of_another_format_is_named() -> None:
    _, problems = parse({"instruction": "Hi", "output": "Hello"}, "chat")
    assert (problems[0].issue, "alpaca" in problems[0].todo) == ("missing_messages", True)
    _, problems = parse({"messages": [U, A]}, "alpaca")
    assert (problems[0].issue, "chat" in problems[0].todo) == ("mixed_format", True)


def test_map_gives_fields_our_names_and_a_missing_one_names_the_nearest() -> None:
    row, problem = renamed(
        {"question": "Hi", "answer": "Hello", "id": 1}, {"prompt": "question", "completion": "answer"}
    )
    assert (row, problem) == ({"prompt": "Hi", "completion": "Hello", "id": 1}, None)
    _, problem = renamed({"questions": "Hi"}, {"prompt": "question"})
    assert problem and "'questions'" in problem.todo


def test_fields_of_turns_that_nothing_reads_are_named() -> None:
    assert list(unread_keys({"messages": [{**U, "thinking": "hm", "refusal": None}, A]})) == ["thinking"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "name", "arguments"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({key for format in FORMATS.values() for key in format.keys} | {"input", "output", "history", "system"})


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), st.sampled_from(list(FORMATS)))
def test_no_row_makes_a_format_raise_and_what_is_accepted_round_trips(row: dict[str, Any], format: str) -> None:
    detect_file([row])
    list(unread_keys(row))
    example, problems = parse(row, format)
    assert (example is None) == bool(problems)
    if example:
        example_of(row, format)
