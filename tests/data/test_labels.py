"""Labels that are spelled otherwise, contradict each other or do not fit their text; sound ones are left alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tunesmith
from tests.data.rows import rows_of
from tunesmith.chat import Example, Message
from tunesmith.data.checks.labels import label_findings, label_forms
from tunesmith.data.checks.mislabel import mislabelled
from tunesmith.data.load import SourceRow, load

DEMO = Path(tunesmith.__file__).parent / "demo_data" / "banking77"
QUESTIONS = {
    "lost_card": "I cannot find my card since {}",
    "top_up_failed?": "The top up I made on {} was refused",
    "Exchange_rate": "What did a dollar cost in euros on {}",
}
_DAYS = "monday tuesday wednesday thursday friday saturday sunday christmas easter"
DAYS = _DAYS.split()
SOUND = [(question.format(day), label) for label, question in QUESTIONS.items() for day in DAYS]


def found_in(*pairs: tuple[str, str]) -> list[tuple[int | None, str, int | None]]:
    return [(found.line, found.issue, found.related) for found in label_findings(rows_of(*pairs))]


@pytest.mark.parametrize(
    "variant",
    ["Lost_Card", "LOST_CARD", "lost card", "lost-card", " lost_card", "lost_card.", '"lost_card"', "lost_cards",
     "lsot_card", "lostcard", "Intent: lost_card"],
)  # fmt: skip
def test_another_spelling_of_a_common_label_is_found(variant: str) -> None:
    assert found_in(*SOUND, ("My card is gone since may", variant)) == [(len(SOUND) + 1, "label_variant", None)]


def test_odd_labels_that_are_spelled_one_way_are_fine_and_codes_are_no_misspellings() -> None:
    assert found_in(*SOUND) == []
    forms = label_forms(["E11.9"] * 9 + ["E11.8", "C", "C++", "c#", "1", "-1"] * 2)
    assert forms is not None
    assert all(form == usual for form, usual in forms.items())


def test_texts_numbers_of_a_kind_and_objects_are_no_labels() -> None:
    assert label_forms([f"answer {n}" for n in range(30)]) is None
    assert label_forms(["yes, because\nof that"] * 20 + ["no"] * 3) is None
    assert label_forms(['{"a": 1}', '{"a": 2}'] * 20) is None
    assert label_forms([]) is None


def test_a_few_damaged_answers_do_not_hide_that_the_rest_are_labels() -> None:
    answers = [label for _, label in SOUND] + ["x" * 900, "As an AI\nI cannot", "{"]
    assert label_forms(answers) is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=30))
def test_a_usual_form_is_one_of_the_file_and_its_own_usual_form(answers: list[str]) -> None:
    forms = label_forms(answers)
    assert forms is None or all(usual in answers and forms[usual] == usual for usual in forms.values())


def test_the_outvoted_answer_conflicts_and_at_a_tie_the_later_one() -> None:
    question = "I cannot find my card since monday"
    later = [*SOUND, (f"Hi, {question.lower()}?", "Exchange_rate")]
    assert found_in(*later) == [(28, "conflicting_label", 1)]
    outvoted = [(question, "Exchange_rate"), *SOUND, (question, "lost_card")]
    assert found_in(*outvoted) == [(1, "conflicting_label", 2)]


def test_two_texts_for_one_question_are_only_worth_knowing_and_another_system_prompt_is_another_question() -> None:
    found = list(label_findings(rows_of(("Hi", "Hello"), ("hi!", "Good day"))))
    assert [(item.line, item.severity) for item in found] == [(2, "info")]
    rows = [*rows_of(("Hi", "Hello"), system="in English"), *rows_of(("Hi", "Hallo"), system="in German")]
    assert list(label_findings(rows)) == []


def test_one_answer_conflicts_with_itself_in_no_spelling() -> None:
    assert "conflicting_label" not in {issue for _, issue, _ in found_in(*SOUND, (SOUND[0][0], "Lost card"))}


def mislabel(rows: list[SourceRow], count: int) -> tuple[list[SourceRow], set[int]]:
    """Rows of the demo with `count` labels drawn anew, and their lines."""
    rng = random.Random(1)
    labels = sorted({row.example.answer for row in rows})
    wrong = set(rng.sample([row.line for row in rows], count))
    spoiled = []
    for row in rows:
        example = row.example
        if row.line in wrong:
            label = rng.choice([label for label in labels if label != example.answer])
            example = Example((*example.prompt, Message("assistant", label, trained=True)))
        spoiled.append(SourceRow(row.line, example))
    return spoiled, wrong


def test_most_drawn_labels_of_the_demo_are_found_and_few_others() -> None:
    rows, wrong = mislabel(load(DEMO / "train.jsonl").examples, 40)
    found = {item.line for item in label_findings(rows, load(DEMO / "test.jsonl").examples)}
    assert len(found & wrong) >= 24
    assert len(found - wrong) <= 12  # the labels of this set are known to be noisy: half of these are mistakes too


def test_labels_that_the_texts_say_nothing_of_are_not_judged() -> None:
    rng = random.Random(0)
    texts = list({" ".join(rng.choices(["ab", "cd", "ef", "gh", "ij", "kl"], k=9)) for _ in range(200)})
    assert list(mislabelled(texts, [rng.choice("xyz") for _ in texts])) == []
    assert list(mislabelled([], [])) == []
    assert list(mislabelled(["a", "b"], ["x", "x"])) == []


def test_each_row_is_judged_by_the_others_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.checks.mislabel.BLOCK", 40)
    texts = [question.format(f"{day} {hour}") for question in QUESTIONS.values() for day in DAYS for hour in range(5)]
    labels = [label for label in QUESTIONS for _ in range(5 * len(DAYS))]
    labels[7] = "Exchange_rate"
    assert list(mislabelled(texts, labels)) == [(7, "lost_card")]
