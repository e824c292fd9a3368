"""Rows become Examples or problems, never exceptions, and the normal form gives the same Example back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, Message, parse_row, shape_of

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


KEYS = "messages role content prompt completion weight x chosen rejected text tools tool_calls function arguments name"
CALLS = st.lists(
    st.builds(
        lambda name, arguments, id: {
            **({"id": id} if id else {}),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        },
        TEXT,
        st.dictionaries(TEXT, TEXT | st.integers(), max_size=2) | st.just('{"a": 1}'),
        st.none() | TEXT,
    ),
    min_size=1,
    max_size=2,
)


@st.composite
def rows_of_any_kind(draw: st.DrawFn) -> dict[str, Any]:
    """Rows in the shapes that `parse_row` reads, with tools, calls, results, names, weights and other fields."""

    def turn(role: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": draw(TEXT), **more}

    prompt = [turn("developer")] if draw(st.booleans()) else []
    prompt.append(turn("user", name=draw(st.none() | TEXT)))
    if draw(st.booleans()):
        calls = draw(CALLS)
        prompt.append({"role": "assistant", "content": draw(st.none() | TEXT), "tool_calls": calls})
        prompt.append(turn("tool", tool_call_id=calls[0].get("id")))
    row: dict[str, Any] = {"tools": None, "weight": draw(st.sampled_from([None, 0.5, 2])), "x": draw(st.integers())}
    answer = turn("assistant", weight=draw(st.sampled_from([None, 1])))
    shape = draw(st.sampled_from(["chat", "preference", "rl", "text"]))
    if shape == "chat":
        return {**row, "messages": [*prompt, answer]}
    if shape == "preference":
        other = {"role": "assistant", "content": answer["content"] + "!"}
        return {**row, "prompt": prompt, "chosen": [answer], "rejected": [other]}
    return {**row, "prompt": prompt} if shape == "rl" else {**row, "text": draw(TEXT)}


@settings(max_examples=80, deadline=None)
@given(rows_of_any_kind())
def test_every_kind_of_row_has_a_normal_form_that_parses_to_the_same_example(row: dict[str, Any]) -> None:
    example, problems = parse_row(row)
    assert example, problems
    assert example.kind == shape_of(row)
    assert parse_row(json.loads(example.to_json())) == (example, [])
    assert example.metadata["x"] == row["x"]


def test_the_normal_form_of_chat_is_the_one_that_ids_were_made_of() -> None:
    row = chat(("user", "a"), ("assistant", "é"), ("user", "c"), ("assistant", "d"), source="mail")
    row["messages"][1]["weight"] = 0
    example, _ = parse_row(row)
    assert example
    assert example.to_json() == (
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"é","weight":0},'
        '{"role":"user","content":"c"},{"role":"assistant","content":"d"}],"source":"mail"}'
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYS.split()]), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
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
        ({"note": "a"}, "missing_messages"),
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
        (chat(("user", "a"), ("assistant", "b"), tools="[{"), "broken_json"),
        (chat(("user", "a"), ("assistant", "b"), tools=["f"]), "bad_tools"),
        (chat(("user", "a"), ("tool", "t"), ("assistant", "b")), "bad_order"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "bad_order"),
        ({"text": ""}, "empty_content"),
        ({"prompt": [{"role": "user", "content": "a"}], "chosen": [], "rejected": []}, "empty_messages"),
    ],
)
def test_each_fault_of_a_row_has_its_name(row: object, issue: str) -> None:
    assert issue in issues_of(row)


def test_every_fault_of_a_row_is_named_at_once() -> None:
    row = chat(("user", ""), ("bot", "x"), weight=-1)
    assert issues_of(row) == ["empty_content", "unknown_role", "bad_order"]


ASK = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


def calling(arguments: object, *, name: str = "f", answers: str = "1") -> dict[str, Any]:
    call = {"id": "1", "function": {"name": name, "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": answers, "content": ""}
    turns = [ASK, {"role": "assistant", "tool_calls": [call]}, result, ANSWER]
    return {"messages": turns, "tools": [{"name": "f", "parameters": {}}]}


def test_a_call_may_come_without_text_and_its_arguments_as_text_or_object() -> None:
    for arguments in ({"x": [1]}, '{"x":[1]}'):
        example, problems = parse_row(calling(arguments))
        assert example, problems
        assert [call.arguments for call in example.messages[1].tool_calls] == ['{"x":[1]}']
        assert example.messages[1].content == ""
        assert example.messages[2].tool_call_id == "1"
        assert example.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize(
    ("row", "issue"),
    [
        (calling("{"), "broken_json"),
        (calling("[1]"), "broken_json"),
        (calling(None), "broken_json"),
        (calling({"x": "\ud800"}), "broken_json"),
        (calling({}, name="g"), "bad_tools"),
        (calling({}, name=""), "bad_tools"),
        (calling({}, answers="2"), "bad_order"),
        ({"messages": [{**ASK, "tool_calls": [{"name": "f", "arguments": {}}]}, ANSWER]}, "bad_order"),
    ],
)
def test_a_faulty_call_is_refused(row: object, issue: str) -> None:
    assert issues_of(row) == [issue]


def test_text_parts_are_joined_and_image_parts_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    example, _ = parse_row({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert example and example.messages[0].content == "ab"
    parts[1] = {"type": "image_url", "image_url": "x"}
    _, problems = parse_row({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert [problem.issue for problem in problems] == ["unsupported_content"]
    assert "image_url" in problems[0].what


def test_a_preference_that_prefers_nothing_is_refused() -> None:
    assert issues_of({"prompt": [ASK], "chosen": [ANSWER], "rejected": [ANSWER]}) == ["conflicting_label"]
    untrained = {"role": "assistant", "content": "c", "weight": 0}
    assert issues_of({"prompt": [ASK], "chosen": [untrained], "rejected": [ANSWER]}) == ["bad_order"]


def test_the_answer_of_a_call_is_the_call_and_reinforcement_has_none() -> None:
    row = calling({"x": 1})
    row["messages"] = row["messages"][:2]
    called, _ = parse_row(row)
    assert called and json.loads(called.answer)[0]["function"]["name"] == "f"
    waiting, _ = parse_row({"prompt": [ASK, ANSWER, ASK]})
    assert waiting and (waiting.kind, len(waiting.prompt), waiting.answer) == ("rl", 3, "")
