"""The scorer of label tasks: whether the reply is one of the labels, and over all rows accuracy, macro-F1, confusion.

Not here: finding the labels (chat.label_set), the floor. Listed in the package's __init__.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.mistakes import count_confusions
from tunesmith.evaluate.scorers.score import Aggregate, Given, Score, Scorer, quote
from tunesmith.evaluate.stats import Floats, bootstrap_interval


def label(argument: str, given: Given) -> Scorer:
    if not given.labels:
        raise InputError(
            "The scorer 'label' needs the list of labels.", "Use it on a task whose answers are labels, or use 'exact'."
        )
    allowed = frozenset(label.strip() for label in given.labels)

    def score(example: Example, reply: Reply) -> Score:
        text = reply.text.strip()
        if text in allowed:
            return Score(1.0, "the reply is one of the labels")
        return Score(0.0, f"{quote(text)} is not one of the {len(allowed)} labels")

    def aggregate(examples: Sequence[Example], replies: Sequence[Reply]) -> Aggregate:
        expected = [example.answer.strip() for example in examples]
        return summarise(expected, [reply.text.strip() for reply in replies], labels=sorted(allowed))

    return Scorer(score, aggregate=aggregate)


def summarise(expected: Sequence[str], replied: Sequence[str], *, labels: Sequence[str]) -> Aggregate:
    """Accuracy, macro-F1 and the table of every label that is expected or replied somewhere.

    Macro-F1 is the plain mean of these labels' F1 (Opitz & Burst 2019, arXiv:1911.03347, the averaged form); a reply
    that is no label is a miss of the expected one and no class of its own.
    """
    wanted_NL = np.array([[answer == name for name in labels] for answer in expected], dtype=np.float64)
    got_NL = np.array([[reply == name for name in labels] for reply in replied], dtype=np.float64)
    hits_NL = wanted_NL * got_NL

    def macro_f1(weights_RN: Floats) -> Floats:
        return np.asarray(np.nanmean(_f1(weights_RN @ hits_NL, weights_RN @ wanted_NL + weights_RN @ got_NL), axis=-1))

    def accuracy(weights_RN: Floats) -> Floats:
        return np.asarray(weights_RN @ hits_NL.sum(axis=1) / weights_RN.sum(axis=1))

    figures = {name: bootstrap_interval(figure, len(expected)) for name, figure in
               (("macro_f1", macro_f1), ("accuracy", accuracy))}  # fmt: skip
    rows = []
    for name, hits, wanted, got in zip(labels, hits_NL.sum(0), wanted_NL.sum(0), got_NL.sum(0), strict=True):
        if wanted + got:
            rows.append(
                {
                    "label": name,
                    "rows": int(wanted),
                    "precision": float(hits / got) if got else None,
                    "recall": float(hits / wanted) if wanted else None,
                    "f1": float(2 * hits / (wanted + got)),
                }
            )
    confusions = count_confusions(expected, replied, labels=labels)
    return Aggregate(figures, {"labels": rows, "confusions": confusions})


def _f1(hits_RL: Floats, both_RL: Floats) -> Floats:
    """NaN for a label that neither is expected nor replied, so that it does not count in the mean."""
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits_RL / both_RL)
