"""The pages of a blind comparison as HTML: who rates, one row to judge, and, once it has ended, the result.

Not here: addresses and who may ask (cli.blind_app), the numbers (tally). Called by cli.blind_app and cli.blind.
Every text of a row or a rater is escaped; a page to judge holds nothing that tells the contenders apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from tunesmith.evaluate.blind import Comparison
from tunesmith.evaluate.tally import tally

TEMPLATE = "blind.html.j2"
SAID_WORDS = {"tie": "Tie", "both_bad": "Both bad"}


def start_page(comparison: Comparison, *, path: str, nonce: str) -> str:
    """Who rates and how far each is; `path` is what all addresses begin with."""
    votes, total = comparison.votes(), len(comparison.rows)
    names = sorted({*comparison.facts["raters"], *votes.raters})
    raters = [{"name": name, "done": len(votes.of(name))} for name in names]
    left = sum(total - rater["done"] for rater in raters)
    return _render(
        "start", path=path, nonce=nonce, raters=raters, total=total, left=left, comparison=comparison, votes=votes
    )


def rate_page(comparison: Comparison, rater: str, *, path: str, nonce: str) -> str:
    """The row this rater is to judge, or that there is none left."""
    shown = comparison.next_row(rater)
    done, total = len(comparison.votes().of(rater)), len(comparison.rows)
    facts: dict[str, Any] = {"path": path, "nonce": nonce, "rater": rater, "done": done, "total": total}
    if shown is None:
        return _render("done", **facts)
    row, left = shown
    replies = (row.a, row.b) if left == "a" else (row.b, row.a)
    system = [turn["content"] for turn in row.prompt if turn["role"] in ("system", "developer")]
    turns = [turn for turn in row.prompt if turn["role"] not in ("system", "developer")]
    return _render("rate", row=row.number, replies=replies, system=system, turns=turns, **facts)


def result_page(comparison: Comparison, *, nonce: str = "") -> str:
    """The result with the names. Without a nonce it is a page of its own, to be kept as a file."""
    result = tally(comparison)
    names = result["contenders"]
    bars = [
        (names["a"], result["rows"]["a"]),
        ("even", result["rows"]["even"]),
        (names["b"], result["rows"]["b"]),
    ]
    comments = [{**one, "said": names.get(one["said"]) or SAID_WORDS[one["said"]]} for one in result["comments"]]
    return _render(
        "result", nonce=nonce, result=result, bars=bars, comments=comments, asked=_asked(comparison), names=names
    )


def refusal_page(message: str, *, nonce: str) -> str:
    return _render("refusal", message=message, nonce=nonce)


def _asked(comparison: Comparison) -> Mapping[int, str]:
    """What each row asked, cut short."""
    return {number: row.prompt[-1]["content"][:200] for number, row in comparison.rows.items()}


def _render(page: str, **facts: Any) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = files("tunesmith.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page, **facts)
