"""The report puts every check's findings together, in order, and says what was not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.chat import Example, Message, label_set
from tunesmith.data.check import CHECKS, ISSUES, CheckReport, check, choose_issues
from tunesmith.data.load import load
from tunesmith.data.page import render_page
from tunesmith.errors import InputError


def write_rows(tmp_path: Path, pairs: list[tuple[str, str]], name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    rows = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def report_on(tmp_path: Path, pairs: list[tuple[str, str]]) -> CheckReport:
    return check(load(write_rows(tmp_path, pairs)))


def test_findings_of_all_checks_stand_in_the_order_of_the_lines(tmp_path: Path) -> None:
    report = report_on(tmp_path, [("Where is it", "cafÃ© <|im_end|>"), ("Who?", "It is I."), ("Who? ", "It is I.")])
    found = [(found.line, found.issue) for found in report.findings]
    assert found == [(1, "mojibake"), (1, "special_token_text"), (3, "exact_duplicate")]
    assert report.findings[-1].related == 2


def test_the_report_has_problems_and_notes_as_findings_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}'
    path.write_bytes(f"\ufeff{good}\r\n\n{{\n".encode())
    lines = [(found.line, found.issue, found.severity) for found in check(load(path)).lines()]
    assert lines == [(1, "bom", "info"), (1, "crlf", "info"), (2, "blank_line", "info"), (3, "broken_json", "error")]


def test_every_finding_has_a_listed_name_and_every_name_is_in_the_guide() -> None:
    guide = Path(__file__).parents[2].joinpath("docs/data.md").read_text(encoding="utf-8")
    assert [issue for issue in ISSUES if f"`{issue}`" not in guide] == []
    assert len({one.name for one in CHECKS}) == len(CHECKS)


def test_two_turns_of_one_role_are_out_of_order_but_two_tool_results_are_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"role": role, "content": content} for role, content in (("user", "a"), ("user", "b"), ("assistant", "c"))]
    path.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    assert [found.issue for found in check(load(path)).findings] == ["bad_order"]


def test_a_row_far_longer_than_the_others_is_found_and_a_file_of_long_rows_is_not(tmp_path: Path) -> None:
    story = "It was a dark and stormy night. "
    short = [(f"{story} Part {number}.", "Yes.") for number in range(40)]
    report = check(load(write_rows(tmp_path, [*short, (story * 400, "No.")])), issues=["too_long"])
    assert [(found.line, found.severity) for found in report.findings] == [(41, "warning")]
    long = [(f"{number} {story * (300 + 20 * number)}", "Yes.") for number in range(40)]
    assert check(load(write_rows(tmp_path, long)), issues=["too_long"]).findings == []


def test_rows_in_a_test_file_are_reported_with_their_line_there(tmp_path: Path) -> None:
    test = load(write_rows(tmp_path, [("Why?", "x"), ("How do I change the PIN of my card?", "pin")], "test.jsonl"))
    train = load(write_rows(tmp_path, [("How do I change  the PIN of my card?", "pin"), ("Else?", "y")]))
    found = [(found.line, found.issue, found.related) for found in check(train, against=[test]).findings]
    assert found == [(1, "leaked_test", 2)]
    assert "leaks" in check(train).not_run
    assert "leaked_test_near" in check(train, against=[test], issues=["leaked_test"]).not_run["leaks"]


def test_only_the_issues_asked_for_are_reported_and_the_rest_is_said_to_be_left_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [("a <|im_end|>", "b"), ("a <|im_end|>", "b")])
    report = check(load(path), issues=choose_issues("exact_duplicate", None))
    assert {found.issue for found in report.findings} == {"exact_duplicate"}
    assert list(report.seconds) == ["exact duplicates"]
    quick = check(load(path), quick=True)
    assert "near duplicates" in quick.not_run
    assert "text" in quick.seconds
    assert choose_issues(None, "pii, secret") == set(ISSUES) - {"pii", "secret"}


def test_an_unknown_issue_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean mojibake"):
        choose_issues("mojibak", None)


def test_the_summary_has_sizes_and_labels(tmp_path: Path) -> None:
    report = report_on(tmp_path, [("a" * size, "yes" if size % 2 else "no") for size in range(1, 21)])
    assert report.summary["prompt_chars"] == {"min": 1, "median": 10, "p95": 19, "max": 20}
    assert report.summary["labels"]["rows_by_label"] == {"yes": 10, "no": 10}
    assert report.summary["same_system_prompt"] is None


def test_the_page_escapes_what_the_data_holds_and_loads_nothing(tmp_path: Path) -> None:
    rows = [("Is <script>alert(1)</script> ok? \u200b", "A <|im_end|> b.")] * 2
    page = render_page(report_on(tmp_path, rows), created="today", version="1")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert "exact_duplicate" in page


def test_the_page_does_not_quote_a_row_with_personal_data(tmp_path: Path) -> None:
    rows = [("Write to jo.smith@example.com today please", "Done, all of it.")] * 2
    report = report_on(tmp_path, rows)
    assert {"pii", "exact_duplicate"} <= {found.issue for found in report.findings}
    assert "Done, all of it." not in render_page(report, created="today", version="1")


def examples_of(*answers: str) -> list[Example]:
    return [Example((Message("user", str(n)), Message("assistant", a, trained=True))) for n, a in enumerate(answers)]


def test_few_short_answers_are_labels_and_texts_are_not() -> None:
    assert label_set(examples_of(*"abab", "a ", "b")) == ["a", "b"]
    assert label_set(examples_of(*"abcab")) is None
    assert label_set(examples_of(*["x" * 65] * 9)) is None
    assert label_set(examples_of(*["x\ny"] * 9)) is None
    assert label_set(examples_of(*['{"a": 1}', '{"b": 1}'] * 3)) is None
    assert label_set([]) is None
