"""Answers written in two styles: most rows in one, some in another, so that a model learns neither well.

Not here: labels that differ in spelling (labels), wrong answers. A style is only told where most answers agree on it.
Called by data.advising.advice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.drafts.form import json_object
from tunesmith.data.load import SourceRow

MAJORITY = 0.8  # below this there is no style to break
MIN_ROWS = 20
GREETING = re.compile(r"(?i)(hi|hello|hey|dear|good (morning|afternoon|evening)|hallo|guten tag|bonjour|hola)\b")
SIGN_OFF = re.compile(
    r"(?i)\b((kind|best|warm) regards|regards|sincerely|cheers|thanks|thank you|best wishes|yours)[\s,.!]*(\n.{0,40})?$"
)
MARKDOWN = re.compile(r"(?m)^(#{1,6} |[-*] |\d+\. |```)|\*\*\S")


@dataclass(frozen=True, slots=True)
class Split:
    """`feature` is `most` in `share` of the rows (0 to 1); the lines of the others, by what it is there."""

    feature: str
    most: str
    share: float
    others: dict[str, list[int]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def style_splits(rows: Sequence[SourceRow]) -> list[Split]:
    """Features on which most answers agree and some do not, the rarest exceptions first."""
    found = []
    for name, feature in FEATURES.items():
        lines: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            if value := feature(row.example.answer.strip()):
                lines[value].append(row.line)
        total = sum(map(len, lines.values()))
        if total < MIN_ROWS or len(lines) < 2:
            continue
        most = max(lines, key=lambda value: (len(lines[value]), value))
        share = len(lines[most]) / total
        if share >= MAJORITY:
            others = {value: lines[value] for value in sorted(lines) if value != most}
            found.append(Split(name, most, round(share, 4), others))
    return sorted(found, key=lambda split: -split.share)


def length_split(rows: Sequence[SourceRow]) -> Split | None:
    """Answers more than four times as long, or as short, as the middle half of them."""
    sizes = {row.line: len(row.example.answer.strip()) for row in rows}
    if len(sizes) < MIN_ROWS:
        return None
    ordered = sorted(sizes.values())
    low, high = ordered[len(ordered) // 4] / 4, 4 * ordered[3 * len(ordered) // 4]
    others = {
        f"under {low:.0f} characters": [line for line, size in sizes.items() if size < low],
        f"over {high:.0f} characters": [line for line, size in sizes.items() if size > high],
    }
    others = {name: lines for name, lines in others.items() if lines}
    share = 1 - sum(map(len, others.values())) / len(sizes)
    most = f"{low:.0f} to {high:.0f} characters"
    return Split("length", most, round(share, 4), others) if others and share >= MAJORITY else None


def _first_letter(text: str) -> str:
    letter = next((char for char in text if char.isalpha()), "")
    if not letter or text[:1] in "{[" or letter.upper() == letter.lower():
        return ""
    return "a capital" if letter.isupper() else "a small letter"


def _end(text: str) -> str:
    if text[-1:] in ("}", "]"):
        return ""
    return "a full stop or the like" if text[-1:] in ".!?\u2026\u3002\uff01\uff1f" else "no full stop"


def _greeting(text: str) -> str:
    return "a greeting" if GREETING.match(text) else "no greeting"


def _sign_off(text: str) -> str:
    return "a sign-off" if SIGN_OFF.search(text) else "no sign-off"


def _markdown(text: str) -> str:
    return "Markdown" if MARKDOWN.search(text) else "plain text"


def _key_order(text: str) -> str:
    """Of JSON objects; those of other fields are not compared."""
    value = json_object(text)
    return ", ".join(value) if value and len(value) > 1 else ""


def _json_layout(text: str) -> str:
    if json_object(text) is None:
        return ""
    return "on several lines" if "\n" in text else "with spaces" if re.search(r'": |, "', text) else "without spaces"


FEATURES: dict[str, Callable[[str], str]] = {
    "starts with": _first_letter,
    "ends with": _end,
    "greeting": _greeting,
    "sign-off": _sign_off,
    "layout": _markdown,
    "order of JSON keys": _key_order,
    "JSON written": _json_layout,
}
