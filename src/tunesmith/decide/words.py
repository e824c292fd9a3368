"""The verdict in sentences: the headline, the reasons, and what would change it.

Not here: the rule (judged), the page (page).
Called by verdict only; the variants of `changes` are decided by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tunesmith.decide.costs import Answers, FactsChange, Prices
from tunesmith.decide.judged import NONE_FITS, Judged, Verdict
from tunesmith.decide.margin import MIN_ROWS, Standing
from tunesmith.decide.rung import KINDS, Rung

ByName = Mapping[str, Rung]


def headline(verdict: Verdict, rungs: ByName) -> str:
    margin = points(verdict.margin)
    if verdict.outcome == NONE_FITS:
        return "No measured rung fulfils what you asked for."
    if verdict.chosen:
        if len(rungs) - len(verdict.barred) == 1:
            return f"{capital(verdict.chosen)}: the only rung that was measured and fits."
        name = capital(verdict.chosen)
        return f"{name}: the cheapest measured rung that is not worse than any other by {margin} or more."
    rows = f"Too few rows to say: {verdict.rows} rows"
    if verdict.rows < MIN_ROWS:
        return f"{rows}, and below {MIN_ROWS} no interval is trusted."
    return f"{rows} do not show that any rung is within {margin} of all others."


def reasons(verdict: Verdict, rungs: ByName, *, answers: Answers) -> list[str]:
    return [
        *_result(verdict, rungs),
        *_until_then(verdict, rungs),
        *_cheaper(verdict, rungs),
        *_ruled_out(verdict, rungs),
        *_static(answers, verdict, rungs),
    ]


def _result(verdict: Verdict, rungs: ByName) -> Iterator[str]:
    if not verdict.chosen or not verdict.best:
        return
    chosen, best = rungs[verdict.chosen], rungs[verdict.best]
    scored = f"It scores {percent(chosen.mean)} ({_range(chosen.low, chosen.high)}) on {verdict.rows} test rows"
    if chosen is best:
        yield f"{scored}, the best of all."
    else:
        standing = _of(verdict, chosen.name)
        times = _times(verdict, chosen.name, best.name)
        yield f"{scored}; the best, {best.name}, {percent(best.mean)}{times}. The difference: {_gap(standing)}."
    dearer = sorted(name for name in rungs if name not in verdict.barred and name not in _names(verdict))
    if dearer:
        verb = "costs more and scores" if len(dearer) == 1 else "cost more and score"
        yield f"{capital(', '.join(dearer))} {verb} no higher than {best.name}."


def _until_then(verdict: Verdict, rungs: ByName) -> Iterator[str]:
    if verdict.chosen or not verdict.best:
        return
    first, best = verdict.open[0], verdict.best
    if first == best:
        yield f"Until then: {best} has the best mean ({percent(rungs[best].mean)}), and nothing cheaper comes near it."
    else:
        gap = _gap(_of(verdict, first))
        yield f"Until then: {first} is the cheapest that these rows do not tell from the best, {best} ({gap})."


def _cheaper(verdict: Verdict, rungs: ByName) -> Iterator[str]:
    """What is cheaper than the chosen rung, or than what is left open, and why it is not enough."""
    stop = verdict.chosen or verdict.best
    before = verdict.standings[: [one.name for one in verdict.standings].index(stop)] if stop else []
    worse = [f"{one.name} by {_lost(one)}" for one in before if one.state == "worse"]
    if worse:
        yield f"Cheaper, and worse than {verdict.best}: {', '.join(worse)} points."
    for one in before if verdict.chosen else ():
        if one.state != "worse":
            yield f"{capital(one.name)} is cheaper; whether it is enough these rows leave open: {_gap(one)}."


def _ruled_out(verdict: Verdict, rungs: ByName) -> Iterator[str]:
    for name, why in verdict.barred.items():
        yield f"{capital(name)} ({percent(rungs[name].mean)}) is ruled out: {why}."


def _static(answers: Answers, verdict: Verdict, rungs: ByName) -> Iterator[str]:
    if answers.facts_change is None:
        yield "How often the facts change was not answered: every rung is set up again once a year."
    else:
        often = "every week" if answers.facts_change == "weekly" else "once a year"
        yield f"Facts change {answers.facts_change}, as you said: every rung is set up again {often}, and that is paid."
    kind = rungs[verdict.chosen].kind if verdict.chosen else ""
    if answers.facts_change == "weekly" and kind in ("fine-tune", "floor"):
        yield f"Between two trainings {verdict.chosen} answers with the facts of the last one."
    if answers.cite:
        yield "Sources must be cited, as you said: only rungs that answer from documents count."
    if answers.data_may_leave is False:
        yield "The data may not leave the house, as you said: no server outside was asked."


def changes(verdict: Verdict, judged: Judged, *, by_name: ByName) -> list[str]:
    """What would make the verdict another: each is decided again by the same rule with one thing changed."""
    return [*_margins(verdict), *_more_rows(verdict), *_other_answers(verdict, judged), *_upkeep(verdict, by_name)]


def _margins(verdict: Verdict) -> Iterator[str]:
    if verdict.chosen:
        needed = _of(verdict, verdict.chosen).margin_needed
        if needed > 0:
            yield f"Margin: with less than {points_up(needed)} these rows would not show {verdict.chosen} to be enough."
    before = _names(verdict)[: _names(verdict).index(verdict.chosen)] if verdict.chosen else _names(verdict)
    wider = {name: _of(verdict, name).margin_needed for name in before}
    if wider and verdict.rows >= MIN_ROWS:
        name = min(wider, key=lambda name: wider[name])
        yield f"Margin: with {points_up(wider[name])} or more it would be {name}."


def _more_rows(verdict: Verdict) -> Iterator[str]:
    """The rows that would settle what is open, if the differences stay as measured."""
    stop = _names(verdict).index(verdict.chosen) if verdict.chosen else len(verdict.standings)
    left_open = [one for one in verdict.standings[:stop] if one.name in verdict.open or one.state == "open"]
    needed = [f"{about(one.rows_needed)} for {one.name}" for one in left_open if one.rows_needed]
    if needed:
        yield f"Rows: so many would show it to be enough, if all stays as measured: about {', '.join(needed)}."
    elif not verdict.chosen:
        yield "Rows: no number of them would settle it at this margin, if all stays as measured."


def _other_answers(verdict: Verdict, judged: Judged) -> Iterator[str]:
    answers, prices = judged.answers, judged.prices
    flipped: FactsChange = "rarely" if answers.facts_change == "weekly" else "weekly"
    cited = "need not" if answers.cite else "had to"
    hour, volume = prices.per_hour, prices.requests_a_month
    others: list[tuple[str, Answers | Prices]] = [
        (f"If facts changed {flipped}", replace(answers, facts_change=flipped)),
        (f"If sources {cited} be cited", replace(answers, cite=not answers.cite)),
    ]
    for many in (0.01, 100):
        words = f"At {volume * many:,.0f} requests a month"
        others.append((words, replace(prices, requests_a_month=volume * many)))
    for factor in (0.1, 10):
        words = f"At {hour * factor:g} an hour for the machine"
        others.append((words, replace(prices, per_hour=hour * factor)))
    if any(rung.leaves for rung in judged.measured):
        others.append(("If the data might not leave", replace(answers, data_may_leave=False)))
    for words, other in others:
        part = {"answers": other} if isinstance(other, Answers) else {"prices": other}
        then = replace(judged, **part).verdict()
        if then.outcome == NONE_FITS:
            yield f"{words}: no measured rung would do."
        elif then.chosen != verdict.chosen:
            yield f"{words}: {then.chosen or 'these rows would be too few to say'}."


def _upkeep(verdict: Verdict, rungs: ByName) -> Iterator[str]:
    if verdict.chosen:
        yield f"Time: {KINDS[rungs[verdict.chosen].kind].upkeep}"


def _of(verdict: Verdict, name: str) -> Standing:
    return next(one for one in verdict.standings if one.name == name)


def _names(verdict: Verdict) -> list[str]:
    return [one.name for one in verdict.standings]


def _times(verdict: Verdict, chosen: str, best: str) -> str:
    """How much dearer the best is."""
    cheap, dear = verdict.costs[chosen].total, verdict.costs[best].total
    return f" at {dear / cheap:,.1f} times the cost" if cheap and dear else ""


def _gap(standing: Standing) -> str:
    """The interval is the one that decided: wider than 95 % where there are several candidates."""
    interval = f"{100 * standing.confidence:.3g} % interval {100 * standing.low:+.1f} to {100 * standing.high:+.1f}"
    return f"{100 * standing.difference:+.1f} points, {interval}".replace("-", "\u2212")


def _lost(standing: Standing) -> str:
    """By how much it is worse, with the interval that decided."""
    return f"{-100 * standing.difference:.1f} ({_range(-standing.high, -standing.low)})"


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def points(share: float) -> str:
    return f"{round(100 * share, 1):g} points"


def points_up(share: float) -> str:
    """Rounded up: a threshold that is named must do."""
    return f"{math.ceil(round(1000 * share, 6)) / 10:g} points"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def about(rows: int) -> str:
    """To two digits: the forecast is no finer than that."""
    step = 10 ** max(0, len(str(rows)) - 2)
    return f"{-(-rows // step) * step:,}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
