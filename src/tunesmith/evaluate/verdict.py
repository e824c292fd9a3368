"""The verdict in words: whether the fine-tune helped, hurt, or shows no difference, and what else must be said.

Not here: the numbers (run, stats) or their page (report).
Called by cli.evaluate and cli.train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluate.evaluation import Evaluation
from tunesmith.evaluate.stats import Difference, minimum_detectable_difference

SIGNIFICANT = 0.05
FEW_ROWS = 50
WORDS = {
    "exact": "exact",
    "normalised": "equal once normalised",
    "contains": "containing the expected answer",
    "json": "equal as JSON",
    "json_valid": "valid JSON objects",
    "json_fields": "field F1",
    "label": "in the label set",
    "stopped": "ended by the model itself",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The two contenders that are judged, and by what."""

    evaluation: Evaluation
    baseline: str
    tuned: str
    scorer: str

    def percents(self, scorer: str) -> tuple[str, str]:
        """The means of the fine-tune and of the baseline, in words."""
        means = [self.evaluation.interval(name, scorer).mean for name in (self.tuned, self.baseline)]
        return _percent(means[0]), _percent(means[1])


def verdict(
    evaluation: Evaluation, *, baseline: str, tuned: str, scorer: str, floor: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`{"headline", "sentences"}`: the main comparison in one sentence, and what qualifies it.

    `floor` is `{"name", "mean", "low", "high", "note"}` (0..1), measured on the same rows.
    Raises InputError when `baseline` or `tuned` is not in the evaluation.
    """
    pair = Pair(evaluation, baseline, tuned, scorer)
    difference = evaluation.difference(baseline, tuned, scorer=scorer)
    sentences = [
        *_power_sentence(pair, difference),
        *_format_sentence(pair),
        *_cut_sentence(pair),
        *(_floor_sentence(pair, floor) if floor else []),
    ]
    if evaluation.rows < FEW_ROWS:
        sentences.append(
            f"With only {evaluation.rows} rows, one row moves the result by {100 / evaluation.rows:.1f} points."
        )
    return {"headline": _headline(pair, difference), "sentences": sentences}


def contender_words(name: str) -> str:
    """How a sentence calls a contender: "the prompted base", "the base", or its name."""
    if name.startswith("base:"):
        return "the prompted base" if "+prompt" in name else "the base"
    return name


def _headline(pair: Pair, difference: Difference) -> str:
    after, before = pair.percents(pair.scorer)
    after, before = f"{after} {_scorer_words(pair.scorer)}", f"{before} for {contender_words(pair.baseline)}"
    rows = f"on {pair.evaluation.rows} held-out row{'s' if pair.evaluation.rows != 1 else ''}"
    if difference.wins + difference.losses == 0:
        return f"No difference can be seen: {after} against {before}, the same score on every row, {rows}."
    interval = f"95 % interval {100 * difference.low:.1f} to {100 * difference.high:.1f}"
    numbers = f"{_points(difference.difference)} points ({interval}, {difference.test} {p_words(difference.p)}) {rows}."
    return f"{_outcome(difference)}: {after} against {before}, {numbers}"


def _outcome(difference: Difference) -> str:
    if difference.p >= SIGNIFICANT:
        return "No difference can be seen"
    return "The fine-tune helped" if difference.difference > 0 else "The fine-tune hurt"


def _power_sentence(pair: Pair, difference: Difference) -> list[str]:
    """What an absent difference means: the size that these rows would have shown."""
    differing, rows = difference.wins + difference.losses, pair.evaluation.rows
    if difference.p < SIGNIFICANT or differing == 0 or difference.test != "McNemar exact":
        return []
    smallest = minimum_detectable_difference(rows, differing / rows)
    seen = f"The two differ on {differing} of {rows} rows"
    if smallest is None:
        return [f"{seen}: too few to show a difference of any size; measure more rows."]
    return [f"{seen}; a true difference below {100 * smallest:.1f} points would be missed more than one time in five."]


def _format_sentence(pair: Pair) -> list[str]:
    for name, kind in (("label", "one of the labels"), ("json_valid", "a valid JSON object")):
        if name in pair.evaluation.scorers and name != pair.scorer:
            after, before = pair.percents(name)
            return [
                f"{after} of the fine-tune's replies are {kind}, against {before} for {contender_words(pair.baseline)}."
            ]
    return []


def _cut_sentence(pair: Pair) -> list[str]:
    cut = sum(not reply.stopped for reply in pair.evaluation.of(pair.tuned).replies)
    if not cut:
        return []
    return [f"{cut} of the fine-tune's {pair.evaluation.rows} replies did not end by themselves (length limit)."]


def _floor_sentence(pair: Pair, floor: Mapping[str, Any]) -> list[str]:
    """Paired when the floor is a contender of this evaluation, else by its interval."""
    named = f"A {_floor_name(str(floor['name']))} floor (no language model) reached {_percent(floor['mean'])}"
    ours = pair.evaluation.interval(pair.tuned, pair.scorer)
    if floor["name"] in pair.evaluation.replies:
        gap = pair.evaluation.difference(str(floor["name"]), pair.tuned, scorer=pair.scorer)
        unclear, evidence = gap.p >= SIGNIFICANT, f"{gap.test} {p_words(gap.p)}"
    else:
        unclear = floor["low"] <= ours.high and ours.low <= floor["high"]
        evidence = "the intervals overlap" if unclear else "the intervals do not overlap"
    above_points = 100 * (ours.mean - floor["mean"])
    if unclear:
        return [f"{named}: these rows do not settle which of it and the fine-tune is better ({evidence})."]
    if above_points < 0:
        return [f"{named}: on this task it beats the fine-tune by {-above_points:.1f} points ({evidence})."]
    return [f"{named}: the fine-tune is above it by {above_points:.1f} points ({evidence})."]


def _floor_name(name: str) -> str:
    return "TF-IDF + linear SVM" if name == "tf-idf + linear svm" else name


def _scorer_words(scorer: str) -> str:
    return (
        f"matching {scorer.removeprefix('regex:')}"
        if scorer.startswith("regex:")
        else WORDS.get(scorer, f"by {scorer}")
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def p_words(p: float) -> str:
    """`p < 0.001`, or p to three places."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
