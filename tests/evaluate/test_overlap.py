"""Overlap with the expected answer has the published values, and the corpus figures are sacrebleu's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.contender import Reply
from tunesmith.evaluate.scorers import Score, make_scorer
from tunesmith.evaluate.scorers.overlap import longest_common_subsequence
from tunesmith.evaluate.scorers.score import Asked, Scored

EXPECTED = ["The cat sat on the mat.", "There is a dog in the garden.", "She sells sea shells."]
REPLIES = ["The cat sat on a mat.", "A dog is in the garden.", "She sells sea shells."]


def score(spec: str, expected: str, text: str) -> Score:
    return make_scorer(spec)(label_example("q", expected), Reply(text, 1, 1, 0.1, "stop"))


def scored(spec: str) -> Scored:
    replies = [Reply(text, 1, 1, 0.1, "stop") for text in REPLIES]
    asked = Asked([label_example("q", answer) for answer in EXPECTED], replies, Fixed("x", []), replies)
    return make_scorer(spec).score_rows(asked)


@pytest.mark.parametrize(
    ("expected", "text", "wanted"),
    [
        # Google's rouge_score, README: 5 words in order, of 9 and 8
        ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.", 2 * 5 / 17),
        # Lin 2004, section 3: 3/4 and 2/4
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        ("北京市", "北京", 4 / 5),
        ("a", "", 0),
        ("!", "?", 0),
    ],
)
def test_rouge_l_has_the_published_values(expected: str, text: str, wanted: float) -> None:
    assert score("rouge_l", expected, text).value == pytest.approx(wanted)


@settings(max_examples=100)
@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_the_common_subsequence_is_that_of_the_textbook_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(a, b) == table[-1][-1]


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_the_corpus_figure_is_sacrebleus_and_not_the_mean_of_the_rows(name: str) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    found = scored(name)
    wanted = {"bleu": BLEU, "chrf": CHRF}[name]().corpus_score(REPLIES, [EXPECTED]).score / 100
    figure = found.aggregate.figures[f"corpus_{name}"]
    assert figure.mean == pytest.approx(wanted)
    assert figure.low <= figure.mean <= figure.high
    assert figure.mean != pytest.approx(sum(one.value for one in found.scores) / 3, abs=1e-4)
    assert "version:" in found.aggregate.sentences[0]


def test_rouge_l_needs_no_more_than_rows() -> None:
    assert not scored("rouge_l").aggregate.figures
