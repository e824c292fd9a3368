"""Rows become Examples or problems, never exceptions, and the normal form gives the same Example back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, Message, parse_row

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


def chat(*turns: tuple[str, str], **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **extra}


def issues_of(row: object) -> list[str]:
    example, problems = parse_row(row)
    assert (example is None) == bool(problems)
    return [problem.issue for problem in problems]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    num_pairs = draw(st.integers(1, 3))
    trained = draw(st.lists(st.booleans(), min_size=num_pairs, max_size=num_pairs).filter(any))
    for flag in trained:
        messages += [Message("user", draw(TEXT)), Message("assistant", draw(TEXT), trained=flag)]
    weight = draw(st.floats(0.01, 100))
    metadata = draw(st.dictionaries(TEXT.filter(lambda key: key not in ("messages", "weight")), st.integers()))
    return Example(tuple(messages), weight, metadata)


@settings(max_examples=60, deadline=None)
@given(examples())
def test_the_normal_form_of_an_example_parses_to_the_same_example(example: Example) -> None:
    again, problems = parse_row(json.loads(example.to_json()))
    assert problems == []
    assert again == example
    assert again.id == example.id
    assert "\n" not in example.to_json()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "prompt", "completion", "weight", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_any_json_value_is_an_example_or_has_problems(value: object) -> None:
    issues_of(value)
    issues_of({"messages": [value, {"role": "user", "content": value}, {"role": value}]})


def test_a_prompt_and_its_completion_are_two_turns() -> None:
    example, problems = parse_row({"prompt": "Hi", "completion": "Hello", "source": "mail"})
    assert example is not None
    assert not problems
    assert example.messages == (Message("user", "Hi"), Message("assistant", "Hello", trained=True))
    assert example.metadata == {"source": "mail"}
    assert (example.prompt, example.answer) == ((Message("user", "Hi"),), "Hello")


def test_a_turn_of_weight_0_is_not_trained() -> None:
    row = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    row["messages"][1]["weight"] = 0
    example, _ = parse_row(row)
    assert example is not None
    assert [message.trained for message in example.messages] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "issue"),
    [
        (["a"], "not_object"),
        ({"text": "a"}, "missing_messages"),
        ({"messages": []}, "empty_messages"),
        ({"messages": "a"}, "missing_messages"),
        ({"prompt": "a"}, "missing_assistant"),
        (chat(("user", "a")), "missing_assistant"),
        (chat(("assistant", "a")), "bad_order"),
        (chat(("user", "a"), ("assistant", "b"), ("user", "c")), "bad_order"),
        (chat(("user", "a"), ("system", "s"), ("assistant", "b")), "bad_order"),
        (chat(("user", "a"), ("bot", "b")), "unknown_role"),
        (chat(("user", " \n"), ("assistant", "b")), "empty_content"),
        (chat(("user", "a\ud800"), ("assistant", "b")), "invalid_utf8"),
        (chat(("user", "a"), ("assistant", "b"), weight=0), "bad_order"),
        (chat(("user", "a"), ("assistant", "b"), score=float("nan")), "broken_json"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}]}, "null_content"),
    ],
)
def test_each_fault_of_a_row_has_its_name(row: object, issue: str) -> None:
    assert issue in issues_of(row)


def test_every_fault_of_a_row_is_named_at_once() -> None:
    row = chat(("user", ""), ("bot", "x"), weight=-1)
    assert issues_of(row) == ["empty_content", "unknown_role", "bad_order"]
