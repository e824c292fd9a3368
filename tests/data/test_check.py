"""The report names what a person should look at, and `check` prints it without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tunesmith.chat import Example, Message, label_set
from tunesmith.cli.check import check as check_command
from tunesmith.data.check import CheckReport, check
from tunesmith.data.load import load


def write_rows(tmp_path: Path, pairs: list[tuple[str, str]]) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def report_on(tmp_path: Path, pairs: list[tuple[str, str]]) -> CheckReport:
    return check(load(write_rows(tmp_path, pairs)))


def test_a_repeated_row_points_at_the_first(tmp_path: Path) -> None:
    report = report_on(tmp_path, [("Hi there", "a"), ("b?", "b"), ("Hi  there ", "a")])
    assert [(found.line, found.issue) for found in report.findings] == [(3, "exact_duplicate")]
    assert "line 1" in report.findings[0].detail


def test_one_prompt_with_two_labels_is_a_warning_on_both_lines(tmp_path: Path) -> None:
    pairs = [("Lost card!", "card"), ("lost card", "login"), *((f"question {n}", "card") for n in range(6))]
    conflicts = [found for found in report_on(tmp_path, pairs).findings if found.issue == "conflicting_label"]
    assert [(found.line, found.severity) for found in conflicts] == [(1, "warning"), (2, "warning")]


def test_one_prompt_with_two_texts_is_only_worth_knowing(tmp_path: Path) -> None:
    report = report_on(tmp_path, [("Hi", "Hello"), ("Hi", "Good day")])
    assert {found.severity for found in report.findings} == {"info"}


@pytest.mark.parametrize("token", ["<|im_start|>", "<|endoftext|>", "[INST]", "<s>", "<end_of_turn>"])
def test_text_that_looks_like_a_control_token_is_found(tmp_path: Path, token: str) -> None:
    findings = report_on(tmp_path, [("Hi", f"a {token} b")]).findings
    assert [(found.line, found.issue) for found in findings] == [(1, "special_token_text")]


def test_the_summary_has_sizes_and_labels(tmp_path: Path) -> None:
    report = report_on(tmp_path, [("a" * size, "yes" if size % 2 else "no") for size in range(1, 21)])
    assert report.summary["prompt_chars"] == {"min": 1, "median": 10, "p95": 19, "max": 20}
    assert report.summary["labels"]["rows_by_label"] == {"yes": 10, "no": 10}
    assert report.summary["same_system_prompt"] is None


def examples_of(*answers: str) -> list[Example]:
    return [Example((Message("user", str(n)), Message("assistant", a, trained=True))) for n, a in enumerate(answers)]


def test_few_short_answers_are_labels_and_texts_are_not() -> None:
    assert label_set(examples_of(*"abab", "a ", "b")) == ["a", "b"]
    assert label_set(examples_of(*"abcab")) is None
    assert label_set(examples_of(*["x" * 65] * 9)) is None
    assert label_set(examples_of(*["x\ny"] * 9)) is None
    assert label_set(examples_of(*['{"a": 1}', '{"b": 1}'] * 3)) is None
    assert label_set([]) is None


def app() -> typer.Typer:
    application = typer.Typer()
    application.command()(check_command)
    return application


def test_the_command_exits_2_and_shows_every_kind_of_problem(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt":"a","completion":"b"}\n' + "{}\n" * 30 + "{'a'}\n[]\n", encoding="utf-8")
    result = CliRunner().invoke(app(), [str(path)])
    assert result.exit_code == 2
    for word in ("32 in all", ":2:1:", ":32:2:", ":33:1:", "missing_messages", "not ok: 32 problems, 1 good rows"):
        assert word in result.output


def test_the_json_document_is_alone_on_stdout_also_for_a_bad_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app(), [str(tmp_path / "missing.jsonl"), "--json"])
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert list(document) == ["file", "rows", "lines", "ok", "problems", "notes", "findings", "summary"]
    assert document["problems"][0]["issue"] == "unreadable_file"
    assert "there is no such file" in result.stderr


def test_a_good_file_exits_0(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [("a", "b"), ("c", "d")])
    result = CliRunner().invoke(app(), [str(path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"] is True
