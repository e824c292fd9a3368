"""The page of `tunesmith check --html`: the report as one file that loads nothing, in light and dark.

Not here: what was found (check) and measured (summary).
Called by cli.check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from tunesmith.data.check import CheckReport
from tunesmith.data.checks.text import strip_controls

TEMPLATE = "check.html.j2"
MAX_LABELS_SHOWN = 40
DETAIL_SHOWN = 300  # characters


def render_page(report: CheckReport, *, created: str, version: str) -> str:
    """The HTML text; everything from the data is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, clip=_clip, plural=plural)
    source = files("tunesmith.data").joinpath(TEMPLATE).read_text(encoding="utf-8")
    sizes, groups = report.summary["sizes"], report.groups()
    return environment.from_string(source).render(
        report=report,
        created=created,
        version=version,
        verdict=verdict(report),
        groups=groups,
        quotes=_quotes(
            report, {found.line for group in groups if group.severity != "info" for found in group.examples}
        ),
        tiles=_tiles(report),
        sizes=sizes,
        bars=_bars([(bar_name(bar), bar["rows"]) for bar in sizes["histogram"]]),
        labels=_label_bars(report.summary["labels"]),
    )


def verdict(report: CheckReport) -> str:
    """One sentence: whether the file can be trained on, and why not."""
    rows, problems = report.summary["rows"], report.loaded.num_problems
    if not problems:
        return f"Can be trained on: {plural(rows, 'good row')}"
    return f"Cannot be trained on yet: {plural(problems, 'problem')}, {plural(rows, 'good row')}"


def _tiles(report: CheckReport) -> list[tuple[str, str, str]]:
    """(name, value, what stands under it) of the key figures."""
    summary, sizes = report.summary, report.summary["sizes"]
    lines = {found.line for found in report.findings if found.severity != "info" and found.line is not None}
    tiles = [
        ("Rows", number(summary["rows"]), f"of {plural(summary['lines'], report.loaded.unit)}"),
        (
            "Problems",
            number(summary["problems"]),
            "they stop training" if summary["problems"] else "nothing stops training",
        ),
        ("Rows to look at", number(len(lines)), f"{plural(len(report.findings), 'finding')} in all"),
    ]
    if sizes["epoch"]:
        tiles.append(
            (f"{sizes['unit'].capitalize()} an epoch", number(sizes["epoch"]), sizes["base"] or "no base was named")
        )
        tiles.append(("Trained share", f"{100 * sizes['trained_share']:.1f}\u00a0%", f"of the {sizes['unit']}"))
    if labels := summary["labels"]:
        tiles.append(("Labels", number(labels["count"]), f"{labels['smallest']} to {labels['largest']} rows each"))
    return tiles


def _quotes(report: CheckReport, lines: set[int | None]) -> dict[int, str]:
    """What was asked and answered on these lines; of no row in which personal data was seen, or was not looked for."""
    if "personal data" not in report.seconds:
        return {}
    private = {found.line for found in report.findings if found.issue in ("pii", "secret")}
    return {
        row.line: " → ".join(
            strip_controls(turn.content)  # one that turns the direction around would turn the page around
            for turn in row.example.messages
            if turn.role not in ("system", "developer")
        )
        for row in report.loaded.examples
        if row.line in lines - private
    }


def _label_bars(labels: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The most frequent labels and, where there are more than fit, the rarest."""
    if not labels:
        return None
    rows = list(labels["rows_by_label"].items())
    shown = rows if len(rows) <= MAX_LABELS_SHOWN else [*rows[: MAX_LABELS_SHOWN // 2], *rows[-MAX_LABELS_SHOWN // 2 :]]
    return {"bars": _bars(shown), "left_out": labels["count"] - len(shown)}


def _bars(rows: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    most = max((count for _, count in rows), default=1)
    return [{"name": name, "rows": count, "percent": round(100 * count / most, 1)} for name, count in rows]


def bar_name(bar: Mapping[str, int | None]) -> str:
    """`100-149` for a bar of the histogram, `600 and more` for the last."""
    first, last = bar["from"] or 0, bar["to"]
    if last is None:
        return f"{first:,} and more"
    return f"{first:,}" if first == last else f"{first:,}\u2013{last:,}"


def number(value: float) -> str:
    return f"{value:,}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _clip(text: str) -> str:
    return text if len(text) <= DETAIL_SHOWN else f"{text[:DETAIL_SHOWN]}…"
