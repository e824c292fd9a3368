"""What the votes of a blind comparison say: who is preferred, how surely, do raters agree, did the side decide.

Not here: keeping votes (blind), the statistics themselves (stats, agreement). Called by cli.blind and its page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict
from typing import Any

from tunesmith.evaluate.agreement import nominal_alpha
from tunesmith.evaluate.blind import Comparison, Vote
from tunesmith.evaluate.stats import Interval, mean_interval, paired_difference
from tunesmith.evaluate.verdict import p_words
from tunesmith.evaluate.visible import SIGNIFICANT, visible_sentence

SAID = ("a", "b", "tie", "both_bad")
# Krippendorff 2004, "Content Analysis", section 11.4.2: what to rely on, and the lowest for tentative conclusions.
RELIABLE, TENTATIVE = 0.8, 0.667


def tally(comparison: Comparison) -> dict[str, Any]:
    """The result, all names in it. A row counts once, however many judged it: for the reply that more of them prefer.

    `win_rate` is the share of rows won by b among those not even, None when all are; its interval (Clopper & Pearson
    1934, Biometrika 26:404-413) leaves 50 % out when the sign test's p is below 0.05. `net` is rows won by b minus
    those won by a over all judged, with Tango's interval; its p is the sign test's.
    """
    votes = comparison.votes()
    by_row: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes.cast:
        by_row[vote.row].append(vote)
    lead = [sum({"a": -1, "b": 1, None: 0}[vote.winner] for vote in by_row[row]) for row in sorted(by_row)]
    decided = [float(ahead > 0) for ahead in lead if ahead]
    net = paired_difference([float(x < 0) for x in lead], [float(x > 0) for x in lead]) if lead else None
    rows = {"prompts": len(comparison.rows) + comparison.same, "same": comparison.same, "judged": len(by_row)}
    result: dict[str, Any] = {
        "ended": votes.ended,
        "created": votes.ended,
        "contenders": {side: comparison.facts[side] for side in ("a", "b")},
        "weights": comparison.facts["weights"],
        "rows": rows | {"a": lead_count(lead, -1), "b": lead_count(lead, 1), "even": lead.count(0)},
        "votes": {said: Counter(map(_said, votes.cast))[said] for said in SAID},
        "raters": {rater: len(votes.of(rater)) for rater in votes.raters},
        "win_rate": asdict(_exact(decided)) if decided else None,
        "net": asdict(net) if net else None,
        "visible": visible_sentence(net) if net else None,
        "agreement": _agreement(by_row),
        "position": _position(votes.cast),
        "comments": [
            {"row": vote.row, "rater": vote.rater, "said": _said(vote), "comment": vote.comment}
            for vote in votes.cast
            if vote.comment
        ],
    }
    headline, figures = _words(result)
    return result | {"headline": headline, "figures": figures, "sentence": f"{headline}{figures and ': '}{figures}."}


def lead_count(lead: list[int], sign: int) -> int:
    return sum(ahead * sign > 0 for ahead in lead)


def _exact(decided: list[float]) -> Interval:
    from scipy.stats import binomtest

    found = binomtest(int(sum(decided)), len(decided))
    interval = found.proportion_ci(0.95, method="exact")
    return Interval(found.statistic, interval.low, interval.high)


def _said(vote: Vote) -> str:
    return vote.winner or vote.choice


def _words(result: dict[str, Any]) -> tuple[str, str]:
    """The answer, and the figures behind it."""
    rows, rate = result["rows"], result["win_rate"]
    if not rows["judged"]:
        return "Nothing has been judged yet", ""
    if rate is None:
        return "Neither is preferred", f"all {rows['judged']} judged rows are even"
    side = "b" if rate["mean"] >= 0.5 else "a"
    share = Interval(**rate)
    if side == "a":
        share = Interval(1 - share.mean, 1 - share.high, 1 - share.low)
    clear = result["net"]["p"] < SIGNIFICANT
    verdict = "is preferred" if clear else "is ahead, but these rows do not settle it"
    return f"{result['contenders'][side]} {verdict}", (
        f"it won {rows[side]} of the {rows['a'] + rows['b']} rows that are not even, {percent(share)}; "
        f"sign test {p_words(result['net']['p'])}"
    )


def _agreement(by_row: dict[int, list[Vote]]) -> dict[str, Any]:
    units = [[_said(vote) for vote in votes] for votes in by_row.values() if len(votes) > 1]
    alpha = nominal_alpha(units)
    if not units:
        words = "No row was judged by two raters, so their agreement cannot be told."
    elif alpha is None:
        words = f"On the {len(units)} rows with several raters all said the same, always: alpha cannot be told from it."
    else:
        low = "low: they see it differently"
        level = "reliable" if alpha >= RELIABLE else "tentative" if alpha >= TENTATIVE else low
        words = f"Krippendorff's alpha is {alpha:.2f} on {len(units)} rows with several raters, {level}."
    return {"alpha": alpha, "rows": len(units), "sentence": words}


def _position(votes: tuple[Vote, ...]) -> dict[str, Any]:
    left = [float(vote.choice == "left") for vote in votes if vote.winner]
    if not left:
        return {"left_share": None, "sentence": "No vote preferred a side."}
    share = mean_interval(left)
    held = share.low <= 0.5 <= share.high
    words = (
        f"The left reply won {percent(share)} of {len(left)} votes: "
        + ("no sign that the side decided." if held else "the side itself seems to have decided some of them.")
        + " Each contender stood at the left of half of each rater's rows, so this favours neither."
    )
    return {"left_share": asdict(share), "sentence": words}


def percent(share: Interval) -> str:
    return f"{share.mean * 100:.0f} % (95 % interval {share.low * 100:.0f} to {share.high * 100:.0f})"
