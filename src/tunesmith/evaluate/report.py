"""The report of a run or an evaluation: report.json and one self-contained report.html in a directory.

Not here: what the numbers are (run), how they are arranged (page) and drawn (charts).
Called by cli.evaluate and cli.train. The page loads nothing: no script, font, image or style from anywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.evaluate.page import build_page, duration, number, percent, points, shorten

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "report.html.j2"
REPLY_SHOWN = 700  # characters of a text on the page; report.json has all of it


def write_report(report: Mapping[str, Any], directory: str | Path) -> Path:
    """Write `report.json` and `report.html` under `directory` and return the path of the HTML file.

    Keys of `report`, any of which may be missing: title, created, tunesmith_version, machine, dataset, run, evaluation
    (`Evaluation.as_dict()`), main_scorer, floor, labels (contender -> the name shown), verdict, served, commands.
    NaN and infinity become null.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    clean = _finite(report)
    page = render_report(clean)
    _write(directory / "report.json", json.dumps(clean, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    return _write(directory / "report.html", page)


def render_report(report: Mapping[str, Any]) -> str:
    """The HTML page as text; everything from the report is escaped."""
    return _template().render(report=report, **build_page(report))


@cache
def _template() -> Template:
    from jinja2 import ChainableUndefined, Environment

    environment = Environment(autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=percent, points=points, number=number, duration=duration, shorten=shorten, clip=_clip, tie=_tie
    )
    return environment.from_string(files("tunesmith.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8"))


def _clip(text: str) -> str:
    text = str(text)
    if len(text) <= REPLY_SHOWN:
        return text
    return f"{text[:REPLY_SHOWN]}… ({len(text) - REPLY_SHOWN:,} characters more)"


def _tie(text: str) -> str:
    """Keep a number and its % on one line."""
    return str(text).replace(" %", "\u00a0%")


def _finite(value: Any) -> Any:
    """The same JSON value with non-finite numbers as null and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(path: Path, text: str) -> Path:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8", errors="replace")
    unfinished.replace(path)
    return path
