"""The page and the table: everything is there, escaped, and nothing comes from elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from tests.decide.rungs import compare, hits, rung
from tunesmith.decide.costs import Answers
from tunesmith.decide.page import COLUMNS, document, money, seconds, table_rows, write_verdict
from tunesmith.decide.picture import Dot, draw
from tunesmith.decide.plan import NotMeasured
from tunesmith.decide.verdict import decide

ABOUT = {
    "title": "Decision: <b>.jsonl",
    "created": "2026-11-22",
    "tunesmith_version": "0",
    "machine": {"cores": "2"},
    "inputs": {"scorer_words": "quality by exact", "cost_words": "paid by the hour", "left_out": ["people"],
               "shown": {"base": "tiny"}},
}  # fmt: skip
PROOF = {
    "sets": {"test": {"rows": 300, "sha256": "ab"}},
    "asked_again": 2,
    "choices": [{"what": "prompt", "chosen": "form", "tried": {"form": 0.5}, "rows": 40, "sha256": "c",
                 "test_rows_seen": 0}],
}  # fmt: skip


@pytest.fixture
def found() -> dict[str, Any]:
    rungs = [
        rung("prompt", hits(30, 300), seconds=0.1),
        replace(rung("fine-tune", hits(290, 300), seconds=0.1, setup_s=600), cut="trained on 5 of 9 rows"),
        rung("big model", hits(290, 300), seconds=1.0),
    ]
    verdict = decide(rungs, Answers(), margin=0.05, compare=compare)
    missing = [NotMeasured("retrieval", "no <documents> were given", 12.0)]
    return document(verdict, rungs, not_measured=missing, rows=PROOF, about=ABOUT)


def test_the_page_holds_the_verdict_each_rung_and_what_was_not_measured(found: dict[str, Any], tmp_path: Path) -> None:
    page = write_verdict(found, tmp_path).read_text()
    assert json.loads((tmp_path / "verdict.json").read_text()) == found
    assert found["verdict"]["chosen"] == "fine-tune"
    for text in (*found["reasons"], *found["changes"]):
        assert str(escape(text)).replace(" %", "\u00a0%").replace(" points", "\u00a0points") in page
    assert "No &lt;documents&gt; were given (about 12.0 s)" in page
    assert "Fine-tune was cut short by the budget, trained on 5 of 9 rows: more may be better." in page
    assert "Not shown, for lack of a price: big model." in page
    assert "2 training rows asked what a test row asks" in page
    assert page.count('class="ring"') == 1
    assert not re.search(r"<script|src=|href=|@import|url\(", page)
    assert "<b>.jsonl" not in page


def test_the_table_has_a_row_for_each_rung_cheapest_first(found: dict[str, Any]) -> None:
    table = table_rows(found)
    assert [row[0] for row in table] == ["prompt", "fine-tune", "big model"]
    assert {len(row) for row in table} == {len(COLUMNS)}
    assert [row[-1] for row in table] == ["worse", "the verdict", "dearer, no better"]
    assert table[2][2] == "?"


def test_labels_of_rungs_that_lie_together_do_not_cover_each_other() -> None:
    dots = [Dot(f"rung number {number}", 0.01 * (1 + number / 20), 0.5, 0.45, 0.55, "open") for number in range(5)]
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="name">', draw(dots))
    assert len(set(places)) == 5
    same_side = [float(y) for x, y, anchor in places if anchor == "start"]
    assert all(abs(a - b) >= 16 for a in same_side for b in same_side if a != b)


@pytest.mark.parametrize("cost", [1e-6, 1e-6 * 1.0001, 1.0, 3000.0])
def test_one_dot_alone_is_drawn_inside_the_picture(cost: float) -> None:
    (x,) = re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="7"', draw([Dot("a", cost, 1.0, 1.0, 1.0, "chosen")]))
    assert 56 <= float(x) <= 884


def test_amounts_and_times_are_short() -> None:
    assert [money(one) for one in (None, 0.0, 0.0123, 0.00001, 12.3)] == ["?", "0", "0.012", "0.000010", "12.30"]
    assert [seconds(one) for one in (0.0004, 0.25, 5.0, 125.0)] == ["0.4 ms", "250 ms", "5.0 s", "2 min 5 s"]
