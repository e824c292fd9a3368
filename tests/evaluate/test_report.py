"""The report is one page that loads nothing, escapes everything and copes with missing parts."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.evaluate.charts import Bar, draw_bars, draw_losses, nice_ticks, smooth, thin
from tunesmith.evaluate.page import confusion_matrix, duration, number, points
from tunesmith.evaluate.report import render_report, write_report
from tunesmith.evaluate.run import evaluate
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.verdict import verdict

ATTACK = "<script>alert('x')</script>"
VOID = {"meta", "line", "rect", "circle", "path", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and holds that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def full_report() -> dict[str, Any]:
    examples = [label_example(f"{ATTACK} {number}", "ab"[number % 2]) for number in range(40)]
    contenders = [Fixed("base:x+prompt:y", [ATTACK] * 40), Fixed("tuned", ["a"] * 40)]
    scorers = {name: make_scorer(name, labels=["a", "b"]) for name in ("exact", "label")}
    evaluation = evaluate(examples, contenders, scorers=scorers, max_new_tokens=4)
    steps = [{"step": step, "loss": 3 / step, "lr": 1e-3, "tokens_per_s": 9.0} for step in range(1, 60)]
    return {
        "title": ATTACK,
        "created": "2026-01-01",
        "tunesmith_version": "0.1.0",
        "machine": {"processor": ATTACK},
        "dataset": {
            "file": "a.jsonl",
            "lines": 3,
            "source": "https://example.org/set",
            "ledger": {"trained": 2, "dropped": 1},
        },
        "run": {
            "base": "x",
            "seconds": 61.0,
            "steps": 59,
            "history": [*steps, {"step": 60, "loss": math.nan}],
            "validation": [{"step": 30, "loss": 0.5}],
            "settings": [{"name": "rank", "value": "16", "reason": ATTACK}],
            "proof": [
                {"check": "reload", "result": "same", "passed": True},
                {"check": "logits", "result": "0", "passed": False},
            ],
        },
        "evaluation": evaluation.as_dict(),
        "main_scorer": "exact",
        "labels": {"tuned": ATTACK},
        "floor": {"name": "tf-idf + linear svm", "mean": 0.7, "low": 0.6, "high": 0.8, "note": "n"},
        "verdict": verdict(evaluation, baseline="base:x+prompt:y", tuned="tuned", scorer="exact"),
        "served": {"model": "m", "question": "q", "reply": ATTACK},
        "commands": [f"tunesmith train {ATTACK}"],
    }


def test_the_page_loads_nothing_and_runs_no_script(tmp_path: Path) -> None:
    html = write_report(full_report(), tmp_path).read_text()
    reader = read(html)
    assert not reader.seen & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"}
    assert not {name for name, _ in reader.attributes} & {
        "src",
        "href",
        "xlink:href",
        "srcset",
        "data",
        "onload",
        "onclick",
    }
    assert "url(" not in html and "@import" not in html and "@font-face" not in html
    assert html.count("https://") == 1  # the source of the dataset, as text


def test_what_a_model_replied_is_shown_as_text(tmp_path: Path) -> None:
    reader = read(write_report(full_report(), tmp_path).read_text())
    assert reader.text.count(ATTACK) > 20


def test_the_page_shows_the_numbers_of_every_part(tmp_path: Path) -> None:
    text = read(write_report(full_report(), tmp_path).read_text()).text.replace("\u00a0", " ")
    for shown in (
        "The fine-tune helped",
        "50.0 %",
        "+50.0",
        "1 min 1 s",
        "✓ passed",
        "✗ failed",
        "The counts add up",
        "floor to beat",
    ):
        assert shown in text
    assert "Undefined" not in text and "None" not in text and "nan" not in text


def test_the_json_beside_the_page_is_strict_and_whole(tmp_path: Path) -> None:
    report = full_report()
    write_report(report, tmp_path)
    read_back = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert read_back["run"]["history"][-1]["loss"] is None
    assert read_back["evaluation"] == json.loads(json.dumps(report["evaluation"]))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_an_empty_report_and_every_report_with_one_part_missing_render() -> None:
    read(render_report({}))
    report = full_report()
    for key in report:
        read(render_report({name: part for name, part in report.items() if name != key}))
        read(render_report({key: report[key]}))
    for key in report["evaluation"]:
        part = {name: value for name, value in report["evaluation"].items() if name != key}
        read(render_report({"evaluation": part}))
    for key in report["run"]:
        read(render_report({"run": {key: report["run"][key]}}))


def test_one_contender_alone_is_shown_without_a_baseline() -> None:
    report = full_report()
    report["evaluation"]["contenders"] = report["evaluation"]["contenders"][1:]
    report["evaluation"]["differences"] = report["evaluation"]["disagreements"] = []
    assert "Exact match" in read(render_report(report)).text


def test_only_what_was_tuned_is_called_so() -> None:
    contenders = [Fixed("base:x", ["a"] * 2), Fixed("fewshot:x:4", ["b"] * 2)]
    rows = [label_example("one", "a"), label_example("two", "b")]
    found = evaluate(rows, contenders, scorers={"exact": make_scorer("exact")}, max_new_tokens=4)
    html = render_report({"title": "t", "evaluation": found.as_dict(), "main_scorer": "exact"})
    assert 'class="badge base"' in html
    assert 'class="badge tuned"' not in html
    assert 'class="badge tuned"' in render_report(full_report())


def test_a_long_reply_is_clipped_and_says_so() -> None:
    report = full_report()
    report["evaluation"]["disagreements"][0]["replies"]["tuned"] = "x" * 5_000
    assert "(4,300 characters more)" in read(render_report(report)).text


def test_the_matrix_rows_add_up_to_the_rows_of_each_label() -> None:
    evaluation = {
        "confusions": [{"expected": "a", "replied": "b", "count": 3}, {"expected": "a", "replied": "junk", "count": 2}],
        "worst_labels": [{"label": "a", "rows": 9, "correct": 4}, {"label": "b", "rows": 2, "correct": 2}],
    }
    matrix = confusion_matrix(evaluation)
    assert matrix is not None
    assert [[cell["count"] for cell in row["cells"]] for row in matrix["rows"]] == [[4, 3, 2], [0, 2, 0]]
    assert confusion_matrix({}) is None


def test_charts_place_values_where_the_axis_says() -> None:
    bars = draw_bars([Bar("half", 0.5, 0.4, 0.6, "tuned"), Bar("floor", 0.25, 0.2, 0.3, "floor")])
    assert 'width="320" height="18" rx="2" class="bar tuned"' in bars
    assert '<line x1="161" y1="8" x2="161"' in bars
    assert draw_losses([(1.0, 0.0)], [(1.0, 0.0)]).startswith("<svg")
    assert 'class="validation"' not in draw_losses([(1.0, 2.0), (2.0, 1.0)], [])


def test_ticks_are_round_and_cover_the_range() -> None:
    assert nice_ticks(0, 4.7) == [0, 1, 2, 3, 4, 5]
    assert nice_ticks(0, 0.03) == [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03]
    assert nice_ticks(1, 4, whole=True) == [1, 2, 3, 4]
    for high in (0.001, 0.7, 3.0, 99, 12_345):
        ticks = nice_ticks(0, high)
        assert ticks[0] == 0 and ticks[-1] >= high and 3 <= len(ticks) <= 8


def test_smoothing_keeps_a_straight_line_and_thinning_keeps_the_ends() -> None:
    line = [(float(step), 2.0 * step) for step in range(100)]
    assert [loss for _, loss in smooth(line)] == pytest.approx([loss for _, loss in line])
    few = thin(line, 7)
    assert few[0] == line[0] and few[-1] == line[-1] and len(few) <= 9


def test_numbers_are_written_for_people() -> None:
    assert [duration(seconds) for seconds in (0.0001, 0.0123, 1.234, 59.7, 61, 7_300)] == [
        "0.1 ms",
        "12 ms",
        "1.23 s",
        "60 s",
        "1 min 1 s",
        "2 h 1 min",
    ]
    assert [number(value) for value in (1234567, 3.0, 167.44, 0.25)] == ["1,234,567", "3", "167.4", "0.25"]
    assert [points(share) for share in (0.727, -0.031, 0.0001, -0.0001)] == ["+72.7", "−3.1", "0.0", "0.0"]
