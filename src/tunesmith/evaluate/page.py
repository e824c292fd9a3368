"""What the report page shows: the report's dict turned into tiles, tables, a matrix and side-by-side rows.

Not here: files and HTML (report, report.html.j2), drawing (charts). Any key of the report may be missing.
Called by report only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluate.charts import Bar, Point, draw_bars, draw_losses
from tunesmith.evaluate.verdict import p_words

MATRIX_LABELS = 10
TITLES = {
    "exact": "Exact match",
    "normalised": "Normalised match",
    "contains": "Contains the answer",
    "json": "Same JSON",
    "json_valid": "Valid JSON",
    "json_fields": "Field F1",
    "label": "In label set",
    "stopped": "Ended by itself",
}
FORMAT_SCORERS = ("label", "json_valid")
Report = Mapping[str, Any]


class Cast:
    """Who is who in a report: display labels, the baseline (first), the tuned one (last), the floor."""

    def __init__(self, report: Report) -> None:
        self.evaluation: Mapping[str, Any] = report.get("evaluation") or {}
        self.contenders: list[Mapping[str, Any]] = list(self.evaluation.get("contenders") or [])
        self.floor: Mapping[str, Any] = report.get("floor") or {}
        self._labels: Mapping[str, str] = report.get("labels") or {}
        self.by_name = {contender["name"]: contender for contender in self.contenders}
        names = [name for name in self.by_name if name != self.floor.get("name")]
        self.tuned: str | None = names[-1] if names else None
        self.baseline: str | None = names[0] if len(names) > 1 else None
        scorers = list(self.contenders[0].get("scores") or {}) if self.contenders else []
        self.main: str = report.get("main_scorer") or (scorers[0] if scorers else "exact")
        self.scorers = scorers
        self.format_scorer = next((name for name in scorers if name in FORMAT_SCORERS and name != self.main), None)

    def label(self, name: str) -> str:
        return self._labels.get(name) or shorten(name, 64)

    def kind(self, name: str) -> str:
        kinds = {self.floor.get("name"): "floor", self.baseline: "base", self.tuned: "tuned"}
        return kinds.get(name, "other")

    def is_named(self, name: str) -> bool:
        """Whether a contender is what its kind says: its place gives it a colour, and nothing more."""
        starts = {"tuned": ("tuned", "adapter:"), "base": ("base",), "floor": ("",), "other": ()}
        return name.startswith(starts[self.kind(name)])

    def score(self, name: str | None, scorer: str | None) -> Mapping[str, float] | None:
        if name is None or scorer is None:
            return None
        return (self.by_name[name].get("scores") or {}).get(scorer)


def build_page(report: Report) -> dict[str, Any]:
    """Everything the template needs beside the report itself."""
    cast = Cast(report)
    lead, _, rest = str((report.get("verdict") or {}).get("headline") or "").partition(": ")
    return {
        "lead": lead if rest else "",
        "headline": rest or lead,
        "title_of": scorer_title,
        "cast": cast,
        "tiles": tiles(report, cast),
        "bars": score_bars(cast),
        "differences": difference_rows(cast),
        "matrix": confusion_matrix(cast.evaluation),
        "pairs": list(cast.evaluation.get("confusions") or [])[:12],
        "sides": disagreement_sides(cast),
        "losses": loss_curves(report.get("run") or {}),
        "ledger": ledger_rows(report.get("dataset") or {}),
    }


def tiles(report: Report, cast: Cast) -> list[dict[str, str]]:
    """The key numbers: value, what it is, and one line under it."""
    shown: list[dict[str, str]] = []
    for name, kind in ((cast.tuned, "tuned"), (cast.baseline, "base")):
        if name is not None and (score := cast.score(name, cast.main)):
            interval = f"95 %: {100 * score['low']:.1f} to {100 * score['high']:.1f}"
            shown.append({"name": cast.label(name), "value": percent(score["mean"]), "note": interval, "kind": kind})
    for row in cast.evaluation.get("differences") or []:
        if (row["a"], row["b"], row["scorer"]) == (cast.baseline, cast.tuned, cast.main):
            note = f"95 %: {points(row['low'])} to {points(row['high'])}, {p_words(row['p'])}"
            shown.append({"name": "Difference", "value": f"{points(row['difference'])} pts", "note": note, "kind": ""})
    if (score := cast.score(cast.tuned, cast.format_scorer)) and cast.format_scorer:
        before = cast.score(cast.baseline, cast.format_scorer)
        note = f"{percent(before['mean'])} for {cast.label(str(cast.baseline))}" if before else ""
        shown.append(
            {"name": scorer_title(cast.format_scorer), "value": percent(score["mean"]), "note": note, "kind": ""}
        )
    run = report.get("run") or {}
    if run.get("seconds") is not None:
        note = ", ".join(f"{number(run[key])} {key}" for key in ("steps", "epochs") if run.get(key) is not None)
        shown.append({"name": "Training time", "value": duration(run["seconds"]), "note": note, "kind": ""})
    if (rows := cast.evaluation.get("rows")) is not None:
        shown.append(
            {"name": "Rows measured", "value": number(rows), "note": "the same for every contender", "kind": ""}
        )
    return shown


def score_bars(cast: Cast) -> Any:
    """The bar chart of the main scorer, the floor included when it is not a contender; "" without scores."""
    bars = []
    for name in cast.by_name:
        if score := cast.score(name, cast.main):
            bars.append(Bar(shorten(cast.label(name), 90), score["mean"], score["low"], score["high"], cast.kind(name)))
    if cast.floor.get("mean") is not None and cast.floor.get("name") not in cast.by_name:
        mean = cast.floor["mean"]
        floor_name = shorten(cast.label(str(cast.floor.get("name"))), 90)
        bars.append(Bar(floor_name, mean, cast.floor.get("low", mean), cast.floor.get("high", mean), "floor"))
    return draw_bars(bars) if bars else ""


def difference_rows(cast: Cast) -> list[dict[str, Any]]:
    """Paired differences, the main scorer first, each with a plain word for its direction."""
    rows = list(cast.evaluation.get("differences") or [])
    rows.sort(key=lambda row: row["scorer"] != cast.main)
    return [{**row, "a": cast.label(row["a"]), "b": cast.label(row["b"]), "p_words": p_words(row["p"])} for row in rows]


def confusion_matrix(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Counts among the most confused labels (expected down, replied across); None when nothing is confused."""
    confusions = list(evaluation.get("confusions") or [])
    totals = {row["label"]: row for row in evaluation.get("worst_labels") or []}
    involved: Counter[str] = Counter()
    for row in confusions:
        for label in {row["expected"], row["replied"]} & totals.keys():
            involved[label] += row["count"]
    labels = [label for label, _ in sorted(involved.items(), key=lambda item: (-item[1], item[0]))[:MATRIX_LABELS]]
    if len(labels) < 2:
        return None
    counts = {(row["expected"], row["replied"]): row["count"] for row in confusions}
    rows = [_matrix_row(label, labels, counts=counts, total=totals[label]) for label in labels]
    return {"labels": labels, "rows": rows, "of": len(totals)}


def _matrix_row(
    label: str, labels: Sequence[str], *, counts: Mapping[tuple[str, str], int], total: Mapping[str, Any]
) -> dict[str, Any]:
    cells = [
        (total["correct"] if other == label else counts.get((label, other), 0), other == label) for other in labels
    ]
    cells.append((total["rows"] - sum(count for count, _ in cells), False))
    shaded = [
        {"count": count, "share": round(count / total["rows"], 3), "kind": "right" if right else "wrong"}
        for count, right in cells
    ]
    return {"label": label, "cells": shaded, "rows": total["rows"], "correct": total["correct"]}


def disagreement_sides(cast: Cast) -> list[dict[str, Any]]:
    """Two groups, gains and losses of the tuned contender, each with its rows of replies."""
    groups: dict[str, list[dict[str, Any]]] = {"gain": [], "loss": []}
    for row in cast.evaluation.get("disagreements") or []:
        names = [name for name in (cast.baseline, cast.tuned) if name in row["replies"]]
        replies = [
            {
                "name": cast.label(name),
                "text": row["replies"][name],
                "score": row["scores"].get(name),
                "kind": cast.kind(name),
            }
            for name in map(str, names)
        ]
        if len(replies) == 2:
            gained = (replies[1]["score"] or 0) >= (replies[0]["score"] or 0)
            groups["gain" if gained else "loss"].append({**row, "replies": replies})
    return [{"kind": kind, "rows": rows} for kind, rows in groups.items() if rows]


def loss_curves(run: Mapping[str, Any]) -> Any:
    training, validation = (_finite_points(run.get(key) or []) for key in ("history", "validation"))
    return draw_losses(training, validation) if len(training) + len(validation) > 1 else ""


def _finite_points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    points = [(row.get("step"), row.get("loss")) for row in rows]
    return [
        (float(step), float(loss))
        for step, loss in points
        if step is not None and loss is not None and math.isfinite(loss)
    ]


def ledger_rows(dataset: Mapping[str, Any]) -> dict[str, Any] | None:
    """Counts by status and whether they add up to the lines of the file."""
    ledger = dataset.get("ledger") or {}
    if not ledger:
        return None
    total = sum(ledger.values())
    return {"rows": list(ledger.items()), "total": total, "adds_up": dataset.get("lines") in (None, total)}


def scorer_title(scorer: str) -> str:
    return TITLES.get(scorer, scorer)


def shorten(text: str, most: int) -> str:
    """At most `most` characters, the middle left out: both ends of a contender's name tell something."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[-(most - 1 - head) :]}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def number(value: float) -> str:
    """1234567 -> 1,234,567; fractions keep up to four significant digits."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Milliseconds below one second, seconds below one minute, then min and s, then h and min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 or seconds == 0 else f"{1000 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
