"""The verdict as a document: verdict.json, one self-contained verdict.html, and the rows of the terminal's table.

Not here: deciding (verdict), measuring (ladder), drawing (picture). The page loads nothing from anywhere.
Called by the command `decide`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tunesmith.decide.judged import Verdict
from tunesmith.decide.picture import Dot, draw
from tunesmith.decide.plan import NotMeasured
from tunesmith.decide.rung import KINDS, Rung
from tunesmith.decide.words import capital, percent

TEMPLATE = "verdict.html.j2"
STATES = {
    "chosen": "the verdict",
    "best": "best mean",
    "not worse": "not worse",
    "open": "not told apart",
    "worse": "worse",
    "dearer": "dearer, no better",
    "out": "ruled out",
}
COLUMNS = ("rung", "quality", "1,000 requests", "one request", "tokens in + out", "memory", "set-up", "")


def contenders(verdict: Verdict, rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Each rung with its score, its difference to the best, what it takes and costs; cheapest first."""
    standings = {one.name: one for one in verdict.standings}

    def cost_key(rung: Rung) -> tuple[float, int]:
        total = verdict.costs[rung.name].total
        return (float("inf") if total is None else total, rung.order)

    listed = []
    for rung in sorted(rungs, key=cost_key):
        standing, cost = standings.get(rung.name), verdict.costs[rung.name]
        listed.append(
            {
                "name": rung.name,
                "state": state_of(verdict, rung.name),
                "score": {"mean": rung.mean, "low": rung.low, "high": rung.high},
                "to_best": standing
                and {key: getattr(standing, key) for key in ("difference", "low", "high", "confidence")},
                "cost_1000": {"running": cost.running, "upkeep": cost.upkeep, "total": cost.total},
                **rung.as_dict()["use"],
                "upkeep": KINDS[rung.kind].upkeep,
                "notes": list(rung.notes),
            }
        )
    return listed


def state_of(verdict: Verdict, name: str) -> str:
    if name in verdict.barred:
        return "out"
    if name == verdict.chosen:
        return "chosen"
    if name == verdict.best:
        return "best"
    return next((one.state for one in verdict.standings if one.name == name), "dearer")


def document(
    verdict: Verdict,
    rungs: Sequence[Rung],
    *,
    not_measured: Sequence[NotMeasured],
    rows: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What verdict.json holds. `rows` is `rows.prove_apart`'s, `about` what the surface knows of inputs and machine."""
    decided = verdict.as_dict()
    late = [one.name for one in not_measured if one.seconds is not None]
    missing = (
        [f"Not measured for lack of time (give more --budget), and perhaps better: {', '.join(late)}."] if late else []
    )
    missing += [
        f"{capital(rung.name)} was cut short by the budget, {rung.cut}: more may be better."
        for rung in rungs
        if rung.cut
    ]
    return {
        **about,
        "verdict": {
            key: decided[key] for key in ("outcome", "chosen", "best", "open", "margin", "rows", "headline", "barred")
        },
        "reasons": [*verdict.reasons, *missing],
        "changes": list(verdict.changes),
        "contenders": contenders(verdict, rungs),
        "standings": decided["standings"],
        "not_measured": [{"name": one.name, "reason": one.reason, "seconds": one.seconds} for one in not_measured],
        "rows": dict(rows),
    }


def table_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The terminal's table, in the order of COLUMNS."""
    return [
        (
            one["name"],
            f"{percent(one['score']['mean'])} ({_span(one['score'])})",
            money(one["cost_1000"]["total"]),
            seconds(one["latency_s"]),
            f"{one['prompt_tokens']:.0f} + {one['completion_tokens']:.0f}",
            size(one["memory_bytes"]),
            seconds(one["setup_s"]),
            STATES[one["state"]],
        )
        for one in document["contenders"]
    ]


def write_verdict(document: Mapping[str, Any], folder: Path) -> Path:
    """Write verdict.json and verdict.html into `folder`; where the page is."""
    _write(folder / "verdict.json", json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    return _write(folder / "verdict.html", render(document))


def render(document: Mapping[str, Any]) -> str:
    """The page as text; everything from the document is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=percent, span=_span, money=money, seconds=seconds, size=size, capital=capital, tie=_tie
    )
    source = files("tunesmith.decide").joinpath(TEMPLATE).read_text(encoding="utf-8")
    lead, _, rest = str(document["verdict"]["headline"]).partition(": ")
    return environment.from_string(source).render(
        document=document, lead=lead, rest=rest, states=STATES, picture=_picture(document), unpriced=_unpriced(document)
    )


def _picture(document: Mapping[str, Any]) -> Any:
    dots = [
        Dot(one["name"], one["cost_1000"]["total"], **one["score"], mark=one["state"])
        for one in document["contenders"]
        if one["cost_1000"]["total"]
    ]
    return draw(dots)


def _unpriced(document: Mapping[str, Any]) -> list[str]:
    return [one["name"] for one in document["contenders"] if not one["cost_1000"]["total"]]


def money(amount: float | None) -> str:
    """Two significant digits below 1; "?" where the price is not known."""
    if amount is None:
        return "?"
    if amount < 1e-7:
        return "0"
    return f"{amount:,.{max(2, 1 - math.floor(math.log10(amount)))}f}"


def seconds(value: float) -> str:
    """Milliseconds, seconds, or minutes."""
    if value < 0.9995:
        return f"{1000 * value:.0f} ms" if value >= 0.0095 or value == 0 else f"{1000 * value:.1g} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def size(value: int | None) -> str:
    if value is None:
        return "elsewhere"
    return f"{value / 1e6:,.0f} MB" if value >= 950_000 else f"{value / 1e6:.1g} MB"


def _span(score: Mapping[str, float]) -> str:
    return f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"


def _tie(text: str) -> str:
    """Keep a number and its unit on one line."""
    return text.replace(" %", "\u00a0%").replace(" points", "\u00a0points")


def _write(path: Path, text: str) -> Path:
    staged = path.with_name(f".{path.name}.staged")
    staged.write_text(text, encoding="utf-8", errors="replace")
    staged.replace(path)
    return path
