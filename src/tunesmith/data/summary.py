"""How large a data set is and what it holds: lengths, trained share, cost of an epoch, answers by label.

Not here: what is wrong with it (check and its parts), showing it (cli.check, page).
Called by data.check.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.chat import Example
from tunesmith.data.load import Loaded, SourceRow
from tunesmith.render import Renderer, RenderError

MAX_LABELS_SHOWN = 100
MAX_BARS = 12
RENDERED_PER_NOTE = 500

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Base:
    """What a row is measured against: a base's tokenizer and template, and its context in tokens."""

    name: str
    renderer: Renderer
    context: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The length of every row and how much of it is trained, in `unit`: tokens where a base is given, else characters.

    `refused` maps the line of a row that the base's template cannot write to its words; such a row has length 0.
    """

    unit: str
    length_N: list[int]
    trained_N: list[int]
    base: Base | None = None
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def fits_N(self) -> list[bool]:
        most = self.base.context if self.base else math.inf
        return [0 < length <= most for length in self.length_N]


def measure(rows: Sequence[SourceRow], base: Base | None = None, *, say: Say = lambda text: None) -> Sizes:
    """Render every row with the base's template, or count characters when there is no base."""
    if base is None:
        trained = [sum(len(turn.content) for turn in row.example.messages if turn.trained) for row in rows]
        return Sizes("characters", [num_chars(row.example) for row in rows], trained)
    length_N, trained_N, refused = [], [], {}
    for number, row in enumerate(rows):
        if number % RENDERED_PER_NOTE == 0:
            say(f"rendering, {number:,} of {len(rows):,} rows")
        try:
            rendered = base.renderer.render(row.example)
        except RenderError as error:
            refused[row.line] = str(error)
            length_N.append(0)
            trained_N.append(0)
            continue
        length_N.append(len(rendered.ids))
        trained_N.append(rendered.num_trained)
    return Sizes("tokens", length_N, trained_N, base, refused)


def num_chars(example: Example) -> int:
    return sum(len(turn.content) for turn in example.messages)


def summarise(loaded: Loaded, sizes: Sizes, *, balance: Counter[str]) -> dict[str, Any]:
    """The figures of a file for `--json`, the terminal and the page. `balance` counts rows by label, empty without."""
    examples = [row.example for row in loaded.examples]
    return {
        "rows": len(examples),
        "lines": loaded.num_lines,
        "blank_lines": len(loaded.blank_lines),
        "problems": loaded.num_problems,
        "problems_by_issue": dict(loaded.problem_counts),
        "sha256": loaded.sha256,
        "turns": spread([len(example.messages) for example in examples]),
        "prompt_chars": spread([sum(len(turn.content) for turn in example.prompt) for example in examples]),
        "answer_chars": spread([len(example.answer) for example in examples]),
        "same_system_prompt": _system_share(examples),
        "labels": _label_summary(balance) if balance else None,
        "sizes": _size_summary(sizes),
    }


def _size_summary(sizes: Sizes) -> dict[str, Any]:
    """Only rows that fit cost anything: training drops the others, with a ledger entry."""
    fitting = [place for place, fits in enumerate(sizes.fits_N) if fits]
    epoch = sum(sizes.length_N[place] for place in fitting)
    trained = sum(sizes.trained_N[place] for place in fitting)
    return {
        "unit": sizes.unit,
        "base": sizes.base.name if sizes.base else None,
        "context": sizes.base.context if sizes.base else None,
        "length": spread([length for length in sizes.length_N if length]),
        "epoch": epoch,
        "trained": trained,
        "trained_share": round(trained / epoch, 4) if epoch else None,
        "rows_that_do_not_fit": len(sizes.length_N) - len(fitting),
        "histogram": histogram([length for length in sizes.length_N if length]),
    }


def histogram(values: Sequence[int]) -> list[dict[str, int | None]]:
    """Counts in at most MAX_BARS bars of one round width that reach the 99th percentile; what is longer shares a last
    bar without an end (`to` None). Every value is counted once."""
    if not values:
        return []
    ordered = sorted(values)
    reach = ordered[_rank(0.99, len(ordered))]
    width = _round_width(reach / (MAX_BARS - 1))
    first, last = ordered[0] // width, reach // width
    counts = Counter(min(value // width, last + 1) for value in ordered)
    bars: list[dict[str, int | None]] = [
        {"from": bin * width, "to": (bin + 1) * width - 1, "rows": counts[bin]} for bin in range(first, last + 1)
    ]
    if counts[last + 1]:
        bars.append({"from": (last + 1) * width, "to": None, "rows": counts[last + 1]})
    return bars


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def spread(values: Sequence[int]) -> dict[str, int] | None:
    """Minimum, median, 95th percentile (nearest rank) and maximum; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ordered[_rank(share, len(ordered))] for name, share in shares.items()}


def _rank(share: float, count: int) -> int:
    return max(0, math.ceil(share * count) - 1)


def _system_share(examples: Sequence[Example]) -> float | None:
    """Share of the rows (0 to 1) that have the most common system prompt; None without any system turn."""
    first = [example.messages[0] for example in examples]
    prompts = Counter(turn.content for turn in first if turn.role in ("system", "developer"))
    return round(max(prompts.values()) / len(examples), 4) if prompts else None


def _label_summary(balance: Counter[str]) -> dict[str, Any]:
    common = balance.most_common()
    return {
        "count": len(common),
        "largest": common[0][1],
        "smallest": common[-1][1],
        "rows_by_label": dict(common[:MAX_LABELS_SHOWN]),
    }
