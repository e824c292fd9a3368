"""Macro-F1, accuracy and confusion of a label task are scikit-learn's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.evaluate.run import evaluate
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.scorers.labels import summarise

pairs = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_macro_f1_is_scikit_learns_over_the_labels_that_occur(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    expected, replied = ([row[side] for row in rows] for side in (0, 1))
    present = sorted({*expected, *replied} - {"x"})
    found = summarise(expected, replied, labels=["a", "b", "c", "never"])
    assert found.figures["macro_f1"].mean == pytest.approx(
        f1_score(expected, replied, labels=present, average="macro", zero_division=0)
    )
    assert found.figures["accuracy"].mean == pytest.approx(accuracy_score(expected, replied))
    assert [row["label"] for row in found.tables["labels"]] == present
    for figure in found.figures.values():
        assert figure.low <= figure.mean + 1e-9 and figure.mean - 1e-9 <= figure.high


def test_the_evaluation_carries_the_figures_of_every_contender() -> None:
    examples = [label_example(f"q{number}", "ab"[number % 2]) for number in range(6)]
    contenders = [Fixed("right", list("ababab")), Fixed("stuck", ["a"] * 6)]
    made = {"label": make_scorer("label", labels=["a", "b"]), "exact": make_scorer("exact")}
    document = evaluate(examples, contenders, scorers=made, max_new_tokens=4).as_dict()
    right, stuck = (one["aggregates"] for one in document["contenders"])
    assert right["label"]["figures"]["macro_f1"]["mean"] == 1
    assert stuck["label"]["figures"]["macro_f1"]["mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert stuck["label"]["tables"]["confusions"] == [{"expected": "b", "replied": "a", "count": 3}]
    assert "exact" not in right
