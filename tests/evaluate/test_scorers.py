"""Scorers give the right value and say why; the registry names the nearest scorer."""

from __future__ import annotations

import json
from pathlib import Path

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
        ("words:few", "no limit of words"),
        ("words:8-3", "no limit of words"),
        ("style", "style:FILE"),
        ("json_schema:missing.json", "cannot be read"),
        ("banned:|", "no phrase"),
        ("similarity:nowhere", "There is no folder nowhere"),
        ("normalized", "Did you mean 'normalised'"),
        ("zzz", "Known: exact,"),
        ("regex", "Write it as regex:PATTERN"),
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


@pytest.mark.parametrize(
    "name", sorted(set(SCORERS) - {"loss", "perplexity", "judge", "style", "python", "similarity"})
)
def test_every_scorer_gives_full_marks_to_the_expected_answer(name: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"required": ["name"]}')
    answer = '{"name": "f", "arguments": {"a": 1}}'
    arguments = {"regex": "a", "words": "<9", "chars": "<=40", "sentences": "1", "banned": "secret", "required": "name"}
    argument = {**arguments, "json_schema": str(schema)}.get(name)
    assert value(f"{name}:{argument}" if argument else name, answer, answer, labels=[answer]) == pytest.approx(1)


@pytest.mark.parametrize(
    "name", sorted(set(SCORERS) - {"loss", "perplexity", "judge", "style", "python", "similarity"})
)
@pytest.mark.parametrize("text", ["", " \n\t "])
def test_every_scorer_survives_an_empty_reply_and_says_why(name: str, text: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    arguments = {"regex": "a", "words": "<9", "chars": "<=40", "sentences": "1", "banned": "x", "required": "name"}
    argument = {**arguments, "json_schema": str(schema)}.get(name)
    found = score(f"{name}:{argument}" if argument else name, '{"name": "f"}', text, labels=["a"])
    assert found.why


@pytest.mark.parametrize(
    ("spec", "text", "wanted"),
    [
        ("words:<8", "One two three four five six seven.", 1),
        ("words:<8", "One two three four five six seven eight", 0),
        ("words:2-3", "well-known don't", 1),
        ("words:>=1", "", 0),
        ("words:3", "北京市", 1),
        ("chars:<=5", " 12345 ", 1),
        ("sentences:2", "It cost 3.50 euros. Fine!", 1),
        ("sentences:1", "No end", 1),
        ("sentences:2", "今天好。明天好。", 1),
        ("banned:as an AI|sorry", "As an AI, I cannot", 0),
        ("banned:art", "The artist", 1),
        ("required:refund|14 days", "A refund takes a week", 0.5),
    ],
)
def test_limits_and_phrases_count_as_a_person_would(spec: str, text: str, wanted: float) -> None:
    assert value(spec, "x", text) == wanted


def test_phrases_come_from_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("kind regards\n\nyour team\n")
    found = score(f"required:{file}", "x", "Kind regards, Jo")
    assert (found.value, found.why) == (0.5, "the reply lacks 'your team'")
    with pytest.raises(InputError, match="cannot be read"):
        make_scorer("required:missing.txt")


def test_a_scorer_may_be_any_function_of_a_local_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def polite(example, reply):\n    return 'please' in reply.text, 'asked for please'\n"
        "def broken(example, reply):\n    return 1 / 0\n"
        "def wrong(example, reply):\n    return 3\n"
    )
    assert score(f"python:{file}:polite", "x", "please go") == Score(1.0, "asked for please")
    with pytest.raises(InputError) as caught:
        score(f"python:{file}:broken", "x", "y")
    assert "line 4, in broken" in caught.value.message and "function.py" not in caught.value.message
    with pytest.raises(InputError, match="returned 3, not a number from 0 to 1"):
        score(f"python:{file}:wrong", "x", "y")
    for bad in (f"{file}:missing", "http://host/mine.py:polite", f"{tmp_path}/no.py:polite", "polite"):
        with pytest.raises(InputError, match="has no function|names no function|There is no file"):
            make_scorer(f"python:{bad}")
