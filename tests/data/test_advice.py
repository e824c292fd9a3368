"""Advice on a data set: curves that hold on known truth, few rows, two styles, gaps, and what cannot be told."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, Message
from tunesmith.data.advising.advice import advise, enough
from tunesmith.data.advising.curve import AHEAD, SHARES, learning_curve
from tunesmith.data.drafts.inputs import read_inputs
from tunesmith.data.load import SourceRow
from tunesmith.errors import DataError, InputError

TOPICS = {
    "card": ["card", "plastic", "chip", "pin", "swipe"],
    "refund": ["money", "refund", "back", "return", "credit"],
    "login": ["password", "login", "account", "locked", "code"],
}
FILLER = [f"word{n}" for n in range(60)]


def row(line: int, question: str, answer: str) -> SourceRow:
    return SourceRow(line, Example((Message("user", question), Message("assistant", answer, trained=True))))


def label_rows(count: int, *, noise: float = 0.0) -> list[SourceRow]:
    """Questions that name their topic with one word among four others; `noise`: the share of drawn labels."""
    draw = random.Random(0)
    rows = []
    for line in range(1, count + 1):
        label = list(TOPICS)[line % 3]
        text = " ".join(draw.sample([draw.choice(TOPICS[label]), *draw.sample(FILLER, 4)], 5))
        rows.append(row(line, text, draw.choice(list(TOPICS)) if draw.random() < noise else label))
    return rows


def test_a_task_that_is_learned_needs_no_more_rows_and_one_that_is_not_does() -> None:
    easy = advise(label_rows(400)).curves[0]
    assert enough(easy) and easy.expected[0].error < 0.02
    texts = [f"case {n} {' '.join(random.Random(n).sample(FILLER, 3))}" for n in range(120)]
    names = [random.Random(-n).choice("abcd") for n in range(120)]
    hard = advise(
        [row(n, text, name) for n, (text, name) in enumerate(zip(texts, names, strict=True), start=1)]
    ).curves[0]
    assert hard.expected[0].error > 0.3


def test_noise_in_the_labels_is_a_floor_that_more_rows_do_not_lower() -> None:
    curve = advise(label_rows(400, noise=0.3)).curves[0]
    assert 0.1 < curve.expected[1].error < 0.4
    assert curve.expected[2].low <= curve.expected[2].error <= curve.expected[2].high


def test_the_curve_of_a_half_predicts_the_whole() -> None:
    rows = label_rows(600, noise=0.2)
    texts = [one.example.messages[0].content for one in rows]
    labels = [one.example.answer for one in rows]
    half = learning_curve(texts[:300], labels[:300], groups=texts[:300])
    whole = learning_curve(texts, labels, groups=texts)
    assert half.expected[1].low <= whole.expected[0].error <= half.expected[1].high


def test_the_curve_is_the_same_each_time_and_its_points_are_in_order() -> None:
    rows = label_rows(120, noise=0.2)
    first, again = (advise(rows).curves[0] for _ in range(2))
    assert first == again
    assert [point.rows for point in first.measured] == sorted(point.rows for point in first.measured)
    assert [point.rows for point in first.expected] == [round(times * 120) for times in AHEAD] and len(SHARES) == 4
    errors = [point.error for point in first.expected]
    assert errors == sorted(errors, reverse=True)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=6), st.sampled_from("ab")), min_size=12, max_size=40, unique_by=lambda pair: pair[0]
    )
)
def test_any_texts_with_two_labels_give_a_curve(pairs: list[tuple[str, str]]) -> None:
    texts, labels = [*(text for text, _ in pairs), "x y"], [*(label for _, label in pairs), "c"]
    curve = learning_curve(texts, labels, groups=texts)
    assert all(
        np.isfinite(point.error) and 0 <= point.low <= point.high <= 1 for point in curve.measured + curve.expected
    )


def test_labels_with_few_rows_are_named_fewest_first() -> None:
    rows = label_rows(90)
    rows += [row(91 + n, f"the roof leaks {n}", "house") for n in range(3)] + [row(95, "the cat sings", "pet")]
    assert advise(rows).few == {"pet": 1, "house": 3}


def test_json_answers_are_measured_field_by_field_where_values_are_few() -> None:
    rows = [
        row(one.line, one.example.messages[0].content, json.dumps({"topic": one.example.answer, "id": one.line}))
        for one in label_rows(120)
    ]
    advice = advise(rows)
    assert advice.kind == "json" and [curve.target for curve in advice.curves] == ["topic"]


def test_of_free_texts_it_says_what_cannot_be_told() -> None:
    rows = [row(n, f"question {n}", f"It is {n}, since " + "so " * (20 + n % 7) + "it goes.") for n in range(1, 60)]
    advice = advise(rows)
    assert advice.curves == [] and any("free text" in sentence for sentence in advice.cannot)
    assert any("--inputs" in sentence for sentence in advice.cannot)


def test_answers_in_a_second_style_are_named_with_their_lines() -> None:
    rows = [row(n, f"question {n}", f"The answer to {n} is a long one, as they all are here.") for n in range(1, 41)]
    rows[4] = row(5, "question 5", "hello! the answer to five is short but it is still an answer")
    rows[9] = row(10, "question 10", "The answer. " * 60)
    found = {split.feature: split.others for split in advise(rows).styles}
    assert found["starts with"] == {"a small letter": [5]} and found["greeting"] == {"a greeting": [5]}
    assert found["ends with"] == {"no full stop": [5]} and list(found["length"].values()) == [[10]]


def test_json_keys_in_another_order_are_a_style_too() -> None:
    rows = [row(n, f"q {n}", json.dumps({"a": n, "b": n * 2})) for n in range(1, 31)]
    rows[7] = row(8, "q 8", '{"b":16,"a":8}')
    found = {split.feature: split.others for split in advise(rows).styles}
    assert found == {"order of JSON keys": {"b, a": [8]}, "JSON written": {"without spaces": [8]}}


def test_inputs_that_no_row_is_about_are_found_with_examples() -> None:
    known = label_rows(150)
    asked = [
        (n, (Message("user", one.example.messages[0].content + " please"),)) for n, one in enumerate(known[:60], 1)
    ]
    strange = [(100 + n, (Message("user", f"which parking garage near gate {n} opens at dawn"),)) for n in range(12)]
    advice = advise(known, inputs=[*asked, *strange])
    assert advice.gaps and sum(gap.inputs for gap in advice.gaps) == 12
    assert {"parking", "garage"} <= set(advice.gaps[0].terms) and all(
        line >= 100 for line, _ in advice.gaps[0].examples
    )
    assert advice.covered is not None and 0.7 < advice.covered < 0.9


def test_inputs_are_read_from_logged_traffic_and_from_open_rows(tmp_path: Path) -> None:
    asked, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"messages": [asked, answer], "id": n}) + "\n" for n in range(3)))
    assert read_inputs(path) == [(n, (Message("user", "hi"),)) for n in (1, 2, 3)]
    path.write_text("".join(json.dumps({"messages": [asked]}) + "\n" for _ in range(2)))
    assert [line for line, _ in read_inputs(path)] == [1, 2]
    path.write_text("{\n")
    with pytest.raises(DataError):
        read_inputs(path)


def test_rows_that_are_no_single_question_are_counted_as_left_out() -> None:
    talk = Example(tuple(turn for _ in range(2) for turn in label_rows(1)[0].example.messages))
    with pytest.raises(InputError):
        advise([SourceRow(1, talk)])
    assert advise([SourceRow(100, talk), *label_rows(60)]).cannot[0].startswith("1 rows of several turns")
