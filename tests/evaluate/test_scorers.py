"""Scorers give the right value and say why; the registry names the nearest scorer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat import Example, Message
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers import SCORERS, Score, make_scorer, normalise

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
objects = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_size=4,
)


def example(answer: str) -> Example:
    return Example((Message("user", "q"), Message("assistant", answer, trained=True)))


def value(spec: str, expected: str, text: str, labels: list[str] | None = None) -> float:
    return score(spec, expected, text, labels).value


def score(spec: str, expected: str, text: str, labels: list[str] | None = None) -> Score:
    return make_scorer(spec, labels=labels)(example(expected), Reply(text, 1, 1, 0.1, "stop"))


@pytest.mark.parametrize(
    ("spec", "expected", "text", "wanted"),
    [
        ("exact", "card_arrival", " card_arrival\n", 1),
        ("exact", "card_arrival", "Card_arrival", 0),
        ("normalised", "card_arrival", "Card  arrival.", 1),
        ("normalised", "C++", "C", 0),
        ("normalised", "!", "?", 0),
        ("normalised", "की", "का", 0),
        ("contains", "yes", "Well, YES!", 1),
        ("contains", "yes", "yesterday", 0),
        ("contains", "北京", "我在北京市", 1),
        ("contains", "?!", "what?!", 1),
        ("json", '{"a": 1, "b": [1, 2]}', '{"b": [1, 2.0], "a": 1.0}', 1),
        ("json", '{"a": true}', '{"a": 1}', 0),
        ("json", '{"a": [1, 2]}', '{"a": [2, 1]}', 0),
        ("json", '{"a": {}}', '{"a": []}', 0),
        ("json", '{"a": 1}', '```json\n{"a": 1}\n```', 0),
        ("json", '{"a": 1}', '{"a": 1, "b": null}', 0),
        ("json_valid", "x", "{}", 1),
        ("json_valid", "x", "[1]", 0),
        ("json_valid", "x", '{"a": NaN}', 0),
        ("json_fields", '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ("json_fields", '{"a": 1, "b": 2}', '{"a": 1}', 2 / 3),
        ("json_fields", "{}", "{}", 1),
        ("json_fields", '{"a": {"b": 1}}', '{"a.b": 1}', 0),
        ("regex:^[a-z_]+$", "x", "card_arrival", 1),
        ("regex:^a:b$", "x", "a:b", 1),
        ("regex:^[a-z_]+$", "x", "Card arrival", 0),
    ],
)
def test_a_scorer_gives_the_value_a_person_would(spec: str, expected: str, text: str, wanted: float) -> None:
    assert value(spec, expected, text) == pytest.approx(wanted)


def test_label_asks_only_whether_the_reply_is_a_label() -> None:
    assert value("label", "a", " b ", labels=["a", "b"]) == 1
    assert score("label", "a", "the a", labels=["a", "b"]) == Score(0.0, "'the a' is not one of the 2 labels")


def test_stopped_tells_a_cut_reply_from_an_ended_one() -> None:
    scorer = make_scorer("stopped")
    assert scorer(example("x"), Reply("x", 1, 1, 0.1, "stop")).value == 1
    assert scorer(example("x"), Reply("x", 1, 8, 0.1, "length")) == Score(
        0.0, "the reply ended by 'length' after 8 tokens"
    )


def test_json_says_where_the_first_difference_is_and_why_a_reply_does_not_parse() -> None:
    wrong = score("json", '{"a": {"b": [1, 2]}}', '{"a": {"b": [1, 3]}}')
    assert wrong.why == "at a.b[1]: expected 2, the reply has 3"
    assert score("json", "{}", "```\n{}\n```").why == "the reply is not JSON: it stands in a ``` fence"
    assert "Expecting" in score("json", "{}", "{a}").why


def test_a_deeply_nested_reply_is_scored_and_not_a_crash() -> None:
    for depth in (500, 5_000, 100_000):
        assert value("json_fields", '{"a": 1}', "[" * depth + "]" * depth) == 0


def test_a_json_scorer_refuses_an_expected_answer_that_is_not_json() -> None:
    with pytest.raises(InputError, match="the expected answer is not JSON"):
        score("json", "card_arrival", "{}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("exakt", "Did you mean 'exact'"),
        ("json-valid", "Did you mean 'json_valid'"),
        ("normalized", "Did you mean 'normalised'"),
        ("zzz", "Known: exact,"),
        ("regex", "regex:PATTERN"),
        ("regex:(", "not a regular expression"),
        ("exact:3", "takes no argument"),
        ("label", "needs the list of labels"),
    ],
)
def test_a_scorer_that_cannot_be_made_says_what_to_write(spec: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        make_scorer(spec)
    assert said in str(caught.value)


@given(objects)
def test_json_scorers_give_one_for_the_same_object_in_any_key_order(wanted: dict[str, object]) -> None:
    turned = json.dumps(dict(reversed(wanted.items())), indent=1)
    for spec in ("json", "json_fields"):
        assert value(spec, json.dumps(wanted), turned) == 1


@given(st.text(max_size=12), st.text(max_size=12))
def test_exact_implies_normalised_implies_contains(expected: str, text: str) -> None:
    values = [value(spec, expected, text) for spec in ("exact", "normalised", "contains")]
    assert values == sorted(values)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_a_score_outside_0_to_1_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Score(1.5, "")


def test_every_scorer_gives_full_marks_to_the_expected_answer() -> None:
    for name in SCORERS:
        spec = "regex:a" if name == "regex" else name
        assert value(spec, '{"a": 1}', '{"a": 1}', labels=['{"a": 1}']) == 1
