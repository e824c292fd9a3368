"""The charts of a report as inline SVG: bars of scores with their intervals, and loss curves.

Not here: the page around them and its colours (report.html.j2 sets the CSS classes used here).
Called by report only. Every text is escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 900
BAR_STEP = 54  # one row of the bar chart: its label above, the bar below
PLOT_RIGHT = 640  # the value column starts right of here
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: its display label, mean and interval in 0..1, and how it is drawn: base, tuned, other or floor."""

    label: str
    mean: float
    low: float
    high: float
    kind: str


def draw_bars(bars: Sequence[Bar]) -> Markup:
    """Horizontal bars on a 0-100 % axis with 95 % whiskers and values; the floor is hollow, its mean a dashed line."""
    bottom = 8 + BAR_STEP * len(bars)
    parts = []
    for percent in range(0, 101, 20):
        x = PLOT_RIGHT * percent / 100 + 1
        anchor = "start" if percent == 0 else "middle"
        parts.append(_line((x, 8), (x, bottom), kind="grid"))
        parts.append(_text(f"{percent} %", (x, bottom + 18), kind="tick", anchor=anchor))
    for number, bar in enumerate(bars):
        parts.append(_bar(bar, 8 + BAR_STEP * number))
    for bar in bars:
        if bar.kind == "floor":
            x = 1 + PLOT_RIGHT * bar.mean
            parts.append(_line((x, 8), (x, bottom), kind="floor-line"))
    return _svg(parts, height=bottom + 26, title="Scores of the contenders with 95 % intervals")


def _bar(bar: Bar, top: float) -> Markup:
    y, height = top + 24, 18
    x, low, high = (1 + PLOT_RIGHT * share for share in (bar.mean, bar.low, bar.high))
    middle = y + height / 2
    ends = [((end, y + 4), (end, y + height - 4)) for end in (low, high)]
    whisker = [((low, middle), (high, middle)), *ends]
    label = bar.label + (", the floor to beat" if bar.kind == "floor" else "")
    parts = [
        _text(label, (1, top + 17), kind="name"),
        Markup('<rect x="1" y="{}" width="{}" height="{}" rx="2" class="bar {}"/>').format(
            y, _n(x - 1), height, bar.kind
        ),
        *(_line(start, end, kind=kind) for kind in ("halo", "whisker") for start, end in whisker),
        _text(f"{100 * bar.mean:.1f} %", (748, y + 14), kind="value", anchor="end"),
        _text(f"{100 * bar.low:.1f} to {100 * bar.high:.1f}", (764, y + 14), kind="tick"),
    ]
    return Markup("").join(parts)


def draw_losses(training: Sequence[Point], validation: Sequence[Point]) -> Markup:
    """Loss over steps: training thin and smoothed, validation as points on a line. Points are (step, loss), finite."""
    left, right, top, bottom = 56, WIDTH - 16, 44, 300
    steps = [step for step, _ in [*training, *validation]]
    losses = [loss for _, loss in [*training, *validation]]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    y_ticks = nice_ticks(0.0, max(max(losses), 1e-6))
    highest = y_ticks[-1]

    def place(point: Point) -> Point:
        x = left + (right - left) * (point[0] - first) / (last - first)
        return x, bottom - (bottom - top) * max(point[1], 0.0) / highest

    parts = [
        _axes(
            y_ticks,
            [tick for tick in nice_ticks(first, last, whole=True) if first <= tick <= last],
            place=place,
            box=(left, right, bottom),
        )
    ]
    if training:
        parts.append(_path([place(point) for point in thin(training, 1500)], "raw"))
        parts.append(_path([place(point) for point in thin(smooth(training), 600)], "smoothed"))
    if validation:
        placed = [place(point) for point in validation]
        parts.append(_path(placed, "validation"))
        for (x, y), (step, loss) in zip(placed, validation, strict=True):
            dot = '<circle cx="{}" cy="{}" r="4" class="validation"><title>step {}: {}</title></circle>'
            parts.append(Markup(dot).format(_n(x), _n(y), f"{step:g}", f"{loss:.4f}"))
    parts.append(_legend(has_training=bool(training), has_validation=bool(validation), x=left))
    return _svg(parts, height=bottom + 46, title="Training and validation loss over steps")


def _axes(
    y_ticks: Sequence[float],
    x_ticks: Sequence[float],
    *,
    place: Callable[[Point], Point],
    box: tuple[float, float, float],
) -> Markup:
    left, right, bottom = box
    parts = []
    for tick in y_ticks:
        y = place((x_ticks[0] if x_ticks else 0.0, tick))[1]
        parts.append(_line((left, y), (right, y), kind="axis" if tick == 0 else "grid"))
        parts.append(_text(f"{tick:g}", (left - 8, y + 4), kind="tick", anchor="end"))
    for tick in x_ticks:
        x = place((tick, 0.0))[0]
        parts.append(_line((x, bottom), (x, bottom + 5), kind="axis"))
        parts.append(_text(f"{tick:,.0f}", (x, bottom + 20), kind="tick", anchor="end" if x > right - 12 else "middle"))
    parts.append(_text("step", ((left + right) / 2, bottom + 40), kind="tick", anchor="middle"))
    parts.append(_text("loss", (left - 8, 28), kind="tick", anchor="end"))
    return Markup("").join(parts)


def _legend(*, has_training: bool, has_validation: bool, x: float) -> Markup:
    entries = [("raw", "training, each step"), ("smoothed", "training, smoothed")] if has_training else []
    entries += [("validation", "validation")] if has_validation else []
    parts = []
    for kind, words in entries:
        parts.append(_line((x, 16), (x + 26, 16), kind=kind))
        if kind == "validation":
            parts.append(Markup('<circle cx="{}" cy="16" r="4" class="validation"/>').format(_n(x + 13)))
        parts.append(_text(words, (x + 34, 20), kind="tick"))
        x += 34 + 7.2 * len(words) + 24
    return Markup("").join(parts)


def nice_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that cover low..high; `whole` keeps to integers."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= 6)
    if whole:
        step = max(1.0, float(round(step)))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(start, stop + 1)]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Centred moving mean over about 1/15 of the points; the window shrinks evenly at both ends, so nothing lags."""
    half = len(points) // 30
    sums = [0.0]
    for _, loss in points:
        sums.append(sums[-1] + loss)
    smoothed = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        smoothed.append((step, (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)))
    return smoothed


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Every k-th point, so that at most about `most` are drawn, and always the last."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _svg(parts: Sequence[Markup], *, height: float, title: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, _n(height), title)
    return head + Markup("\n").join(parts) + Markup("</svg>")


def _line(start: Point, end: Point, *, kind: str) -> Markup:
    places = [_n(value) for value in (*start, *end)]
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*places, kind)


def _path(points: Sequence[Point], kind: str) -> Markup:
    line = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
    return Markup('<path d="{}" class="{}"/>').format(line, kind)


def _text(words: str, at: Point, *, kind: str, anchor: str = "start") -> Markup:
    place = (_n(at[0]), _n(at[1]))
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        *place, kind, anchor, escape(words)
    )


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
