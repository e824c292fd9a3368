"""Scorers of free text by its overlap with the expected answer: ROUGE-L, BLEU and chrF.

Not here: meaning (model), style (style). Listed in the package's __init__. sacrebleu is imported when used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.evaluate.scorers.score import Aggregate, Given, Score, Scorer
from tunesmith.evaluate.scorers.text import words
from tunesmith.evaluate.stats import Floats, bootstrap_interval


def rouge_l(argument: str, given: Given) -> Scorer:
    """F1 of the longest common subsequence of words, case folded, no stemming (Lin 2004, section 3)."""

    def score(example: Example, reply: Reply) -> Score:
        wanted, got = ([word.casefold() for word in words(text)] for text in (example.answer, reply.text))
        common = longest_common_subsequence(wanted, got)
        why = f"{common} words in the same order, of {len(wanted)} expected and {len(got)} replied"
        if not wanted and not got:
            return Score(float(example.answer.strip() == reply.text.strip()), why)
        return Score(2 * common / (len(wanted) + len(got)), why)

    return Scorer(score)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, a whole row of the table at once in the bits of one number (Hyyrö 2004, the LLCS recurrence)."""
    places: dict[str, int] = defaultdict(int)
    for place, token in enumerate(b):
        places[token] |= 1 << place
    full = (1 << len(b)) - 1
    row = full  # a 0 bit: the length grows here
    for token in a:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(b) - row.bit_count()


def bleu(argument: str, given: Given) -> Scorer:
    from sacrebleu.metrics import BLEU

    return _sacrebleu("bleu", BLEU(), by_row=BLEU(effective_order=True))


def chrf(argument: str, given: Given) -> Scorer:
    from sacrebleu.metrics import CHRF

    return _sacrebleu("chrf", CHRF(), by_row=CHRF())


def _sacrebleu(name: str, metric: Any, *, by_row: Any) -> Scorer:
    """Sentence scores, and the corpus figure, which is not their mean. sacrebleu's 0..100 becomes 0..1.

    The figure's interval needs each row's counts, which sacrebleu only gives under private names; a test holds that the
    figure is that of its public `corpus_score`.
    """

    def score(example: Example, reply: Reply) -> Score:
        value = by_row.sentence_score(reply.text, [example.answer]).score
        return Score(min(1.0, value / 100), f"{name} {value:.1f} of 100 against the expected answer")

    def aggregate(examples: Sequence[Example], replies: Sequence[Reply]) -> Aggregate:
        counts_NK = np.array(
            metric._extract_corpus_statistics(
                [reply.text for reply in replies], [[example.answer for example in examples]]
            )
        )

        def figure(weights_RN: Floats) -> Floats:
            totals_RK = (weights_RN @ counts_NK).astype(int).tolist()
            return np.array([metric._compute_score_from_stats(totals).score / 100 for totals in totals_RK])

        signature = str(metric.get_signature())
        return Aggregate({f"corpus_{name}": bootstrap_interval(figure, len(examples))}, sentences=[signature])

    return Scorer(score, aggregate=aggregate)
