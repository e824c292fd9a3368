"""The verdict says what was measured, also when the fine-tune did not help."""

from __future__ import annotations

from typing import Any

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.evaluate.run import evaluate
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.verdict import verdict

BASE_NAME = "base:smollm2-135m-instruct+prompt:p.txt"


def judge(
    before: int, after: int, *, rows: int = 100, floor: dict[str, Any] | None = None, cut: bool = False
) -> dict[str, Any]:
    """Base right on the first `before` rows, the fine-tune on the first `after`."""
    examples = [label_example(f"q{number}", "ab"[number % 2]) for number in range(rows)]
    contenders = [
        Fixed(
            name,
            [example.answer if number < right else "b a" for number, example in enumerate(examples)],
            finish_reason=finish,
        )
        for name, right, finish in ((BASE_NAME, before, "stop"), ("tuned", after, "length" if cut else "stop"))
    ]
    scorers = {name: make_scorer(name, labels=["a", "b"]) for name in ("exact", "label")}
    evaluation = evaluate(examples, contenders, scorers=scorers, max_new_tokens=4)
    return verdict(evaluation, baseline=BASE_NAME, tuned="tuned", scorer="exact", floor=floor)


def test_a_fine_tune_that_helped_is_said_in_one_exact_sentence() -> None:
    said = judge(5, 80)
    assert said["headline"].startswith(
        "The fine-tune helped: 80.0 % exact against 5.0 % for the prompted base, +75.0 points (95 % "
    )
    assert said["headline"].endswith("McNemar exact p < 0.001) on 100 held-out rows.")
    assert said["sentences"] == [
        "80.0 % of the fine-tune's replies are one of the labels, against 5.0 % for the prompted base."
    ]


def test_a_fine_tune_that_hurt_is_said_so() -> None:
    assert judge(80, 40)["headline"].startswith("The fine-tune hurt: 40.0 % exact against 80.0 %")


def test_a_small_difference_is_not_called_a_gain_and_the_visible_size_is_named() -> None:
    said = judge(50, 53)
    assert said["headline"].startswith("No difference can be seen: 53.0 % exact against 50.0 %")
    assert "p = 0.250" in said["headline"]
    assert said["sentences"][0].startswith("The two differ on 3 of 100 rows: too few to show a difference of any size")


def test_equal_scores_on_every_row_are_no_difference() -> None:
    assert judge(50, 50)["headline"].endswith("the same score on every row, on 100 held-out rows.")


def test_a_floor_that_beats_the_fine_tune_is_named() -> None:
    floor = {"name": "tf-idf + linear svm", "mean": 0.99, "low": 0.97, "high": 0.995}
    last = judge(5, 60, floor=floor)["sentences"][-1]
    assert last == (
        "A TF-IDF + linear SVM floor (no language model) reached 99.0 %: on this task it beats the fine-tune by "
        "39.0 points (the intervals do not overlap)."
    )


def test_a_floor_near_the_fine_tune_is_left_open_and_one_below_is_beaten() -> None:
    near = {"name": "tf-idf + linear svm", "mean": 0.62, "low": 0.5, "high": 0.7}
    assert "do not settle" in judge(5, 60, floor=near)["sentences"][-1]
    low = {"name": "tf-idf + linear svm", "mean": 0.1, "low": 0.05, "high": 0.2}
    assert "the fine-tune is above it by 50.0 points" in judge(5, 60, floor=low)["sentences"][-1]


def test_a_floor_that_was_asked_is_compared_by_pairs() -> None:
    floor = {"name": BASE_NAME, "mean": 0.05, "low": 0.0, "high": 0.1}
    assert "(McNemar exact p < 0.001)" in judge(5, 60, floor=floor)["sentences"][-1]


def test_cut_replies_and_few_rows_are_said() -> None:
    sentences = judge(2, 9, rows=10, cut=True)["sentences"]
    assert "10 of the fine-tune's 10 replies did not end by themselves (length limit)." in sentences
    assert sentences[-1] == "With only 10 rows, one row moves the result by 10.0 points."
