"""`tunesmith check`: exit codes, what is printed, and the files it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tunesmith = Callable[..., Any]


@pytest.fixture
def dirty_file(tmp_path: Path) -> Path:
    """Three good rows, of which one is a copy, one has a control character and one wrong decoding; one broken line."""
    rows = [("Is there a café?", "Yes."), ("Is there a cafÃ©?", "Yes."), ("Why\u0007 so?", "No idea.")]
    lines = [json.dumps({"prompt": prompt, "completion": answer}, ensure_ascii=False) for prompt, answer in rows]
    path = tmp_path / "dirty.jsonl"
    path.write_text("\n".join([*lines, "{"]) + "\n", encoding="utf-8")
    return path


def test_a_bad_file_exits_2_and_shows_every_kind_of_problem(tunesmith: Tunesmith, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt":"a","completion":"b"}\n' + "{}\n" * 30 + "{'a'}\n[]\n", encoding="utf-8")
    answer = tunesmith("check", path)
    assert answer.code == 2
    for word in ("32 in all", ":2:1:", ":32:2:", ":33:1:", "missing_messages", "not ok", "32 problems, 1 good row"):
        assert word in answer.out


def test_the_json_document_is_alone_on_stdout_also_for_a_bad_file(tunesmith: Tunesmith, tmp_path: Path) -> None:
    answer = tunesmith("check", tmp_path / "missing.jsonl", "--json")
    assert answer.code == 2
    assert answer.document["problems"][0]["issue"] == "unreadable_file"
    assert "there is no such file" in answer.err


def test_a_good_file_exits_0_and_each_check_has_its_time(tunesmith: Tunesmith, tiny_file: Path) -> None:
    document = tunesmith("check", tiny_file, "--json").document
    assert document["ok"] is True
    assert document["seconds"].keys() >= {"order", "text", "exact duplicates", "near duplicates", "labels"}
    assert "--against" in document["not_run"]["leaks"]


def test_the_report_has_a_line_for_each_finding_and_the_page_is_written(
    tunesmith: Tunesmith, dirty_file: Path, tmp_path: Path
) -> None:
    report, page = tmp_path / "report.jsonl", tmp_path / "page.html"
    assert tunesmith("check", dirty_file, "--report", report, "--html", page).code == 2
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    found = {(line["line"], line["issue"]) for line in lines}
    assert found >= {(2, "mojibake"), (3, "control_chars"), (4, "broken_json")}
    assert all(line.keys() >= {"line", "issue", "severity", "detail", "suggestion"} for line in lines)
    assert page.read_text().startswith("<!doctype html>")


def test_fix_writes_the_rows_and_a_ledger_and_exits_0(tunesmith: Tunesmith, dirty_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.jsonl"
    before = dirty_file.read_bytes()
    answer = tunesmith("check", dirty_file, "--fix", out, "--json")
    assert answer.code == 0
    assert answer.document["fix"]["counts"] == {"kept": 2, "removed": 1, "merged": 1, "changed": 1, "masked": 0}
    ledger = [json.loads(line) for line in (tmp_path / "clean.ledger.jsonl").read_text().splitlines()]
    assert [line["fate"] for line in ledger] == ["kept", "merged", "kept", "removed"]
    assert dirty_file.read_bytes() == before
    assert tunesmith("check", out).code == 0


def test_fix_replaces_nothing_without_force_and_never_its_source(
    tunesmith: Tunesmith, dirty_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clean.jsonl"
    out.write_text("mine")
    assert tunesmith("check", dirty_file, "--fix", out).code == 2
    assert out.read_text() == "mine"
    assert not (tmp_path / "clean.ledger.jsonl").exists()
    assert tunesmith("check", dirty_file, "--fix", out, "--force").code == 0
    answer = tunesmith("check", dirty_file, "--fix", dirty_file, "--force")
    assert answer.code == 2
    assert "one of the files to read" in answer.err


def test_the_base_gives_lengths_in_tokens(tunesmith: Tunesmith, tiny_file: Path, tiny_base: Path) -> None:
    sizes = tunesmith("check", tiny_file, "--base", tiny_base, "--quick", "--json").document["summary"]["sizes"]
    assert sizes["unit"] == "tokens"
    assert 0 < sizes["trained_share"] < 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--only", "mojibak"), "Did you mean mojibake"),
        (("--rules", "no-lff"), "Did you mean lf"),
        (("--map", "prompt"), "prompt=question"),
        (("--against", "nowhere.jsonl"), "no such file"),
    ],
)
def test_a_wrong_flag_says_what_is_meant(tunesmith: Tunesmith, tiny_file: Path, flags: Any, words: str) -> None:
    answer = tunesmith("check", tiny_file, *flags)
    assert answer.code == 2
    assert words in answer.err


def test_a_large_file_gets_one_pass_and_it_is_said_what_was_left_out(
    tunesmith: Tunesmith, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.data.check.LARGE_BYTES", 100)
    tiny_file.write_text(tiny_file.read_text() + tiny_file.read_text().splitlines()[4] + "\n{\n")
    document = tunesmith("check", tiny_file, "--json").document
    assert (document["rows"], document["lines"], document["ok"]) == (61, 62, False)
    assert [(found["line"], found["related"]) for found in document["findings"]] == [(61, 5)]
    assert "--deep" in document["not_run"]["near duplicates"]
    assert "near duplicates" in tunesmith("check", tiny_file, "--json", "--deep").document["seconds"]
    answer = tunesmith("check", tiny_file, "--fix", tmp_path / "out.jsonl")
    assert answer.code == 2
    assert "--deep" in answer.err
