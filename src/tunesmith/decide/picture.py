"""Quality against cost as inline SVG: cost on a log axis, each rung with its interval, the chosen one marked.

Not here: the page around it and its colours (verdict.html.j2 sets the classes used here).
Called by page only. Every text is escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 900, 430
LEFT, RIGHT, TOP, BOTTOM = 56, 884, 20, 374
LETTER = 7.4  # width of a letter of a label, about
LINE = 18


@dataclass(frozen=True, slots=True)
class Dot:
    """`cost` for 1,000 requests, above 0; mean and interval 0 to 1; `mark`: chosen, best, open, worse or out."""

    name: str
    cost: float
    mean: float
    low: float
    high: float
    mark: str


Box = tuple[float, float, float, float]


def draw(dots: Sequence[Dot]) -> Markup:
    """The picture, or nothing where there is no dot."""
    if not dots:
        return Markup("")
    first, last = _decades([dot.cost for dot in dots])
    bottom, top = _percents(dots)

    def place(dot: Dot, share: float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * (math.log10(dot.cost) - first) / (last - first)
        return x, BOTTOM - (BOTTOM - TOP) * (share - bottom) / (top - bottom)

    parts = [_axes(first, last, bottom=bottom, top=top)]
    taken: list[Box] = []
    for dot in dots:
        x, y = place(dot, dot.mean)
        taken.append((x - 9, y - 9, x + 9, y + 9))
        taken.append((x - 1, place(dot, dot.high)[1], x + 1, place(dot, dot.low)[1]))
    for dot in dots:
        x, y = place(dot, dot.mean)
        ends = [place(dot, share)[1] for share in (dot.low, dot.high)]
        parts.append(_line(x, ends[0], x, ends[1], kind="whisker"))
        parts += [_line(x - 5, end, x + 5, end, kind="whisker") for end in ends]
        if dot.mark == "chosen":
            parts.append(Markup('<circle cx="{}" cy="{}" r="13" class="ring"/>').format(_n(x), _n(y)))
        title = f"{dot.name}: {100 * dot.mean:.1f} % ({100 * dot.low:.1f} to {100 * dot.high:.1f})"
        circle = '<circle cx="{}" cy="{}" r="7" class="dot {}"><title>{}</title></circle>'
        parts.append(Markup(circle).format(_n(x), _n(y), dot.mark, escape(title)))
    for dot in sorted(dots, key=lambda dot: dot.mark != "chosen"):
        parts.append(_label(dot, place(dot, dot.mean), taken))
    head = '<svg viewBox="0 0 {} {}" role="img" aria-label="Quality against cost of every rung">'
    return Markup(head).format(WIDTH, HEIGHT) + Markup("\n").join(parts) + Markup("</svg>")


def _label(dot: Dot, at: tuple[float, float], taken: list[Box]) -> Markup:
    """The name beside its dot where no other text or dot is; a thin line leads to one that had to go further off."""
    x, y = at
    width = LETTER * len(dot.name)
    steps = [0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6]
    spots = [(x + 18, y + LINE * step, "start") for step in steps] + [
        (x - 18, y + LINE * step, "end") for step in steps
    ]
    spots.sort(key=lambda spot: abs(spot[1] - y))
    for left, middle, anchor in spots:
        start = left if anchor == "start" else left - width
        box = (start, middle - 8, start + width, middle + 8)
        inside = box[0] > LEFT and box[2] < RIGHT + 12 and box[1] > TOP - 12 and box[3] < BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            break
    else:
        left, middle, anchor, box = x + 18, y, "start", (x + 18, y - 8, x + 18 + width, y + 8)
    taken.append(box)
    kind = "name chosen" if dot.mark == "chosen" else "name"
    words = Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>')
    text = words.format(_n(left), _n(middle + 5), anchor, kind, escape(dot.name))
    if middle == y:
        return text
    return _line(x, y, left + (-4 if anchor == "start" else 4), middle, kind="leader") + text


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _decades(costs: Sequence[float]) -> tuple[float, float]:
    """Powers of ten around all costs."""
    first, last = math.floor(math.log10(min(costs)) - 0.05), math.ceil(math.log10(max(costs)) + 0.05)
    return first, max(last, first + 1)


def _percents(dots: Sequence[Dot]) -> tuple[float, float]:
    """Round shares around all intervals."""
    low, high = min(dot.low for dot in dots), max(dot.high for dot in dots)
    bottom, top = math.floor(10 * low - 0.1) / 10, math.ceil(10 * high + 0.1) / 10
    return max(0.0, bottom), min(1.0, max(top, bottom + 0.2))


def _axes(first: float, last: float, *, bottom: float, top: float) -> Markup:
    parts = []
    step = 0.1 if top - bottom <= 0.6 else 0.2
    for number in range(round((top - bottom) / step) + 1):
        y = BOTTOM - (BOTTOM - TOP) * number * step / (top - bottom)
        parts.append(_line(LEFT, y, RIGHT, y, kind="axis" if number == 0 else "grid"))
        parts.append(_text(f"{100 * (bottom + number * step):.0f} %", LEFT - 8, y + 4, anchor="end"))
    for decade in range(int(first), int(last) + 1):
        x = LEFT + (RIGHT - LEFT) * (decade - first) / (last - first)
        parts.append(_line(x, TOP, x, BOTTOM, kind="grid"))
        anchor = "start" if decade == first else "end" if decade == last else "middle"
        parts.append(_text(f"{10.0**decade:,.{max(0, -decade)}f}", x, BOTTOM + 20, anchor=anchor))
    parts.append(_text("cost of 1,000 requests, with upkeep", (LEFT + RIGHT) / 2, BOTTOM + 44, anchor="middle"))
    return Markup("").join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, *, kind: str) -> Markup:
    line = Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>')
    return line.format(_n(x1), _n(y1), _n(x2), _n(y2), kind)


def _text(words: str, x: float, y: float, *, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="tick" text-anchor="{}">{}</text>').format(_n(x), _n(y), anchor, words)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
