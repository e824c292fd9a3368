"""The verdict in words: whether the fine-tune helped, hurt, or shows no difference, and what else must be said.

Not here: the numbers (run, stats) or their page (report).
Called by cli.evaluate and cli.train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.run import Evaluation
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


def verdict(
    evaluation: Evaluation, *, baseline: str, tuned: str, scorer: str, floor: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`{"headline", "sentences"}`: the main comparison in one sentence, and what qualifies it.

    `floor` is `{"name", "mean", "low", "high", "note"}` (0..1), measured on the same rows.
    Raises InputError when `baseline` or `tuned` is not in the evaluation.
    """
    difference = evaluation.difference(baseline, tuned, scorer)
    sentences = [
        *_power_sentence(evaluation, difference),
        *_format_sentence(evaluation, baseline, tuned, scorer),
        *_cut_sentence(evaluation, tuned),
        *(_floor_sentence(evaluation, tuned, scorer, floor) if floor else []),
    ]
    if evaluation.rows < FEW_ROWS:
        sentences.append(
            f"With only {evaluation.rows} rows, one row moves the result by {100 / evaluation.rows:.1f} points."
        )
    return {"headline": _headline(evaluation, baseline, tuned, scorer, difference), "sentences": sentences}


def contender_words(name: str) -> str:
    """How a sentence calls a contender: "the prompted base", "the base", or its name."""
    if name.startswith("base:"):
        return "the prompted base" if "+prompt" in name else "the base"
    return name


def _headline(evaluation: Evaluation, baseline: str, tuned: str, scorer: str, difference: Difference) -> str:
    after = f"{_percent(evaluation.interval(tuned, scorer).mean)} {_scorer_words(scorer)}"
    before = f"{_percent(evaluation.interval(baseline, scorer).mean)} for {contender_words(baseline)}"
    rows = f"on {evaluation.rows} held-out row{'s' if evaluation.rows != 1 else ''}"
    if difference.wins + difference.losses == 0:
        return f"No difference can be seen: {after} against {before}, the same score on every row, {rows}."
    interval = f"95 % interval {100 * difference.low:.1f} to {100 * difference.high:.1f}"
    numbers = f"{_points(difference.difference)} points ({interval}, {difference.test} {p_words(difference.p)}) {rows}."
    return f"{_outcome(difference)}: {after} against {before}, {numbers}"


def _outcome(difference: Difference) -> str:
    if difference.p >= SIGNIFICANT:
        return "No difference can be seen"
    return "The fine-tune helped" if difference.difference > 0 else "The fine-tune hurt"


def _power_sentence(evaluation: Evaluation, difference: Difference) -> list[str]:
    """What an absent difference means: the size that these rows would have shown."""
    differing = difference.wins + difference.losses
    if difference.p < SIGNIFICANT or differing == 0 or difference.test != "McNemar exact":
        return []
    smallest = minimum_detectable_difference(evaluation.rows, differing / evaluation.rows)
    seen = f"The two differ on {differing} of {evaluation.rows} rows"
    if smallest is None:
        return [f"{seen}: too few to show a difference of any size; measure more rows."]
    return [f"{seen}; a true difference below {100 * smallest:.1f} points would be missed more than one time in five."]


def _format_sentence(evaluation: Evaluation, baseline: str, tuned: str, scorer: str) -> list[str]:
    for name in ("label", "json_valid"):
        if name in evaluation.scorers and name != scorer:
            after, before = (_percent(evaluation.interval(contender, name).mean) for contender in (tuned, baseline))
            kind = "one of the labels" if name == "label" else "a valid JSON object"
            return [f"{after} of the fine-tune's replies are {kind}, against {before} for {contender_words(baseline)}."]
    return []


def _cut_sentence(evaluation: Evaluation, tuned: str) -> list[str]:
    cut = sum(not reply.stopped for reply in evaluation.of(tuned).replies)
    if not cut:
        return []
    return [f"{cut} of the fine-tune's {evaluation.rows} replies did not end by themselves (length limit)."]


def _floor_sentence(evaluation: Evaluation, tuned: str, scorer: str, floor: Mapping[str, Any]) -> list[str]:
    """Paired when the floor is a contender of this evaluation, else by its interval."""
    named = f"A {_floor_name(str(floor['name']))} floor (no language model) reached {_percent(floor['mean'])}"
    ours = evaluation.interval(tuned, scorer)
    if floor["name"] in evaluation.replies:
        gap = evaluation.difference(str(floor["name"]), tuned, scorer)
        unclear, evidence = gap.p >= SIGNIFICANT, f"{gap.test} {p_words(gap.p)}"
    else:
        unclear = floor["low"] <= ours.high and ours.low <= floor["high"]
        evidence = "the intervals overlap" if unclear else "the intervals do not overlap"
    if unclear:
        return [f"{named}: these rows do not settle which of it and the fine-tune is better ({evidence})."]
    if floor["mean"] > ours.mean:
        gap_points = 100 * (floor["mean"] - ours.mean)
        return [f"{named}: on this task it beats the fine-tune by {gap_points:.1f} points ({evidence})."]
    return [f"{named}: the fine-tune is above it by {100 * (ours.mean - floor['mean']):.1f} points ({evidence})."]


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
