"""Answers that say nothing are found; labels, wanted words and files that teach declining are not."""

import pytest

from tests.data.rows import rows_of
from tunesmith.data.checks.boilerplate import are_labels, boilerplate_findings

LABELS = [(f"question number {n}", ("card", "fee", "pin")[n % 3]) for n in range(60)]
REPLIES = [(f"question number {n}", f"You can see the answer to {n} on the page about {n * 7}.") for n in range(60)]


def lines(*pairs: tuple[str, str]) -> list[int | None]:
    return [finding.line for finding in boilerplate_findings(rows_of(*pairs))]


@pytest.mark.parametrize("around", [LABELS, REPLIES], ids=["labels", "replies"])
@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I cannot classify this request.",
        "I'm sorry, but I can't assist with that.",
        "N/A",
        "TODO",
        "[INSERT ANSWER HERE]",
        "lorem ipsum dolor sit amet",
        "asdf",
        "...",
        "test",
        "your answer here",
        "#REF!",
        "Als KI-Sprachmodell kann ich das nicht.",
        "Lo siento, pero no puedo ayudar con eso.",
        "undefined",
    ],
)
def test_an_answer_without_an_answer_is_found(around: list[tuple[str, str]], answer: str) -> None:
    assert lines(*around, ("a question", answer)) == [61]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that. Please send us your order number.",
        "None of these cards has a fee.",
        "Test the card first.",
        "No.",
        "42",
        "I can help you with that.",
        "As an AI company, we train models.",
    ],
)
def test_a_real_answer_is_left_alone(answer: str) -> None:
    assert lines(*REPLIES, ("a question", answer)) == []


def test_a_value_that_many_rows_have_is_a_label() -> None:
    assert lines(*LABELS, *((f"other {n}", "none") for n in range(8))) == []


def test_an_answer_that_was_asked_for_is_right() -> None:
    assert lines(*REPLIES, ("Reply with just the word test", "test"), ("write lorem ipsum", "Lorem ipsum dolor")) == []


def test_declining_is_no_fault_where_the_file_teaches_it() -> None:
    declining = [(f"how do I steal {n}?", f"I can't help you with that, {n} would be illegal.") for n in range(20)]
    assert lines(*REPLIES, *declining) == []


def test_labels_are_short_answers_that_come_again() -> None:
    assert are_labels([answer for _, answer in LABELS])
    assert not are_labels([answer for _, answer in REPLIES])
    assert not are_labels([])
