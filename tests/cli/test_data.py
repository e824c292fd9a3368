"""`tunesmith data`: from a file to versions, differences and back to a file, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith import runs

Tunesmith = Callable[..., Any]


def write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    turns = (({"role": "user", "content": ask}, {"role": "assistant", "content": answer}) for ask, answer in rows)
    path.write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in turns))
    return path


FIRST = [("where is my card", "card"), ("give my money back", "refund"), ("I cannot sign in", "login")]
SECOND = [("where is my new card", "card"), ("I cannot sign in", "login"), ("close my account", "account")]


@pytest.fixture
def two_versions(tunesmith: Tunesmith, tmp_path: Path) -> tuple[str, str]:
    one = tunesmith("data", "add", write(tmp_path / "support.jsonl", FIRST), "--json").document["version"]
    write(tmp_path / "support.jsonl", SECOND)
    two = tunesmith("data", "add", tmp_path / "support.jsonl", "-m", "cards", "--json").document["version"]
    return one, two


def test_add_says_what_changed_and_nothing_twice(tunesmith: Tunesmith, tmp_path: Path) -> None:
    file = write(tmp_path / "support.jsonl", FIRST)
    assert "3 rows (3 added, 0 removed, 0 edited)" in tunesmith("data", "add", file).out
    assert "holds these rows already" in tunesmith("data", "add", file).out
    answer = tunesmith("data", "add", write(file, SECOND), "--json")
    assert (answer.document["name"], answer.document["counts"]) == ("support", {"added": 1, "removed": 1, "edited": 1})


def test_log_lists_versions_with_their_tags_and_messages(tunesmith: Tunesmith, two_versions: tuple[str, str]) -> None:
    one, two = two_versions
    assert "support v1" not in tunesmith("data", "tag", one, "v1").err
    text = tunesmith("data", "log", "support").out
    assert [line.split()[0] for line in text.splitlines()[1:]] == [two, one]
    assert "+1 -1 ~1" in text
    assert "cards" in text
    assert "v1" in text
    assert [entry["id"] for entry in tunesmith("data", "log", "v1", "--json").document["versions"]] == [one]
    assert f"support: {two}, 3 rows" in tunesmith("data", "log").out


def test_diff_marks_the_words_that_changed(tunesmith: Tunesmith, two_versions: tuple[str, str]) -> None:
    one, two = two_versions
    text = tunesmith("data", "diff", one, two).out
    assert "{+new +}" in text
    assert "[-give my money back-]" in text
    assert "1 added, 1 removed, 1 edited, 0 moved" in text
    changes = tunesmith("data", "diff", one, "support", "--json").document["changes"]
    assert [(change["kind"], (change["after"] or change["before"])["row"]) for change in changes] == [
        ("edited", 1), ("removed", 2), ("added", 4),
    ]  # fmt: skip
    assert "2 more changes" in tunesmith("data", "diff", one, two, "--limit", 1).out


def test_export_gives_the_normal_form_back_and_replaces_nothing(
    tunesmith: Tunesmith, two_versions: tuple[str, str], tmp_path: Path
) -> None:
    from tunesmith.data.load import load

    out = tmp_path / "out.jsonl"
    assert tunesmith("data", "export", "support", out, "--json").document["rows"] == 3
    assert load(out).examples == load(tmp_path / "support.jsonl").examples
    assert tunesmith("data", "export", "support", out).code == 2
    assert tunesmith("data", "export", two_versions[0], out, "--force").code == 0


def test_show_gives_a_version_or_one_line_of_it(tunesmith: Tunesmith, two_versions: tuple[str, str]) -> None:
    text = tunesmith("data", "show", "support").out
    assert "from support.jsonl, 3 lines: 3 trained" in text
    assert f"parent: {two_versions[0]}" in text
    text = tunesmith("data", "show", "support", "--line", 3).out
    assert "line 3 of support.jsonl, row 4: trained" in text
    assert "close my account" in text
    assert tunesmith("data", "show", "support", "--line", 9).code == 2


def test_why_tells_the_life_of_a_row_and_the_runs_that_had_it(
    tunesmith: Tunesmith, two_versions: tuple[str, str], tmp_path: Path
) -> None:
    shown = tunesmith("data", "show", two_versions[0], "--line", 1, "--json").document
    run = runs.create_run(tmp_path / "run", recipe={"base": "tiny"}, facts={})
    run.write_lines("ledger.jsonl", [{"line": 7, "example": shown["example"], "status": "held_out", "reason": ""}])
    answer = tunesmith("data", "why", "support#1", "--json").document
    assert [touch["effect"] for touch in answer["touches"]] == ["added", "edited"]
    assert [(use["line"], use["status"]) for use in answer["uses"]] == [(7, "held_out")]
    text = tunesmith("data", "why", "support:1").out
    assert "{+new +}" in text
    assert f"{run.id} (new): held_out, line 7 of its file" in text
    gone = tunesmith("data", "why", f"{two_versions[0]}:2").out
    assert "removed by add: support.jsonl (not in support.jsonl)" in gone
    assert "not in the newest version" in gone
    for wrong in ("support#99", "support:9", "nothing#1", "support"):
        assert tunesmith("data", "why", wrong).code == 2


def test_another_root_is_another_store(tunesmith: Tunesmith, tmp_path: Path) -> None:
    file = write(tmp_path / "support.jsonl", FIRST)
    assert tunesmith("data", "add", file, "--root", tmp_path / "store", "--name", "mine").code == 0
    assert "No data sets yet" in tunesmith("data", "log").out
    assert "mine: " in tunesmith("data", "log", "--root", tmp_path / "store").out
