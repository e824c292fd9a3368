"""Which rows tell most about two contenders, and which labels are taken for which.

Not here: asking, scoring and averages (run). Plain lists in, plain lists out.
Called by run.Evaluation only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

FEW = 3  # rows of the rarer direction that are shown if there are any
REPLY_SHOWN = 60


def telling_rows(before: Sequence[float], after: Sequence[float], *, expected: Sequence[str], limit: int) -> list[int]:
    """Row indices where the two scores differ: gains first, then losses, in proportion but at least three of each side.

    Within a side: larger differences first, then one row for each distinct expected answer before a second of any.
    """
    gains = [row for row in range(len(before)) if after[row] > before[row]]
    losses = [row for row in range(len(before)) if after[row] < before[row]]
    total = len(gains) + len(losses)
    if total <= limit:
        num_losses = len(losses)
    else:
        share = round(limit * len(losses) / total)
        fewest = max(min(FEW, len(losses), limit // 2), limit - len(gains))
        most = min(len(losses), limit - min(FEW, len(gains), limit // 2))
        num_losses = min(max(share, fewest), most)

    gaps = [abs(second - first) for first, second in zip(before, after, strict=True)]
    shown_gains = _varied(gains, gaps=gaps, expected=expected)[: limit - num_losses]
    return shown_gains + _varied(losses, gaps=gaps, expected=expected)[:num_losses]


def _varied(rows: list[int], *, gaps: Sequence[float], expected: Sequence[str]) -> list[int]:
    seen: Counter[str] = Counter()
    keyed = []
    for row in sorted(rows, key=lambda row: -gaps[row]):
        keyed.append((-gaps[row], seen[expected[row]], row))
        seen[expected[row]] += 1
    return [row for _, _, row in sorted(keyed)]


def count_confusions(
    expected: Sequence[str], replied: Sequence[str], *, labels: Collection[str]
) -> list[dict[str, object]]:
    """`[{"expected", "replied", "count"}]` of wrong rows, most first; a reply that is no label is shortened."""
    pairs = Counter(
        (wanted, got if got in labels else _short(got))
        for wanted, got in zip(expected, replied, strict=True)
        if wanted != got
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [{"expected": wanted, "replied": got, "count": count} for (wanted, got), count in ordered]


def count_worst_labels(expected: Sequence[str], replied: Sequence[str]) -> list[dict[str, object]]:
    """`[{"label", "rows", "correct"}]` of every expected label, lowest share correct first, then the most rows."""
    rows = Counter(expected)
    correct = Counter(wanted for wanted, got in zip(expected, replied, strict=True) if wanted == got)
    ordered = sorted(rows, key=lambda label: (correct[label] / rows[label], -rows[label], label))
    return [{"label": label, "rows": rows[label], "correct": correct[label]} for label in ordered]


def _short(reply: str) -> str:
    flat = " ".join(reply.split())
    return flat if len(flat) <= REPLY_SHOWN else flat[: REPLY_SHOWN - 1] + "…"
