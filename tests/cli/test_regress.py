"""`tunesmith regress` measures before and after on shipped suites and files, and writes every row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Answer

Tunesmith = Callable[..., Answer]


def test_suites_by_name_and_by_file_are_measured_and_written(
    tunesmith: Tunesmith, tiny_base: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"question": "Red?", "choices": ["no", "yes"], "answer": "yes"}\n', encoding="utf-8")
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"prompt": "Hi", "completion": "ho"}\n', encoding="utf-8")
    out = tmp_path / "out"
    suites = ["--suite", "boolq,xstest", "--suite", mine, "--suite", chat, "--scorer", "contains"]
    answer = tunesmith(
        "regress", f"base:{tiny_base}", "--base", tiny_base, *suites, "--limit", 2, "--out", out, "--json"
    )
    assert answer.code == 0, answer.err
    document = answer.document
    judged = [(one["suite"], one["measure"]) for one in document["changes"] if one["judged"]]
    assert judged == [
        ("boolq", "acc"),
        ("xstest", "over_refusal"),
        ("xstest", "harmful_compliance"),
        ("mine", "acc"),
        ("chat", "contains"),
    ]
    assert all(one["difference"] == 0 for one in document["changes"])  # before and after are the same model
    assert "Nothing got worse that these rows show." in answer.err
    assert json.loads((out / "regress.json").read_text())["changes"] == document["changes"]
    assert len((out / "rows.jsonl").read_text().splitlines()) == 2 * (2 + 2 + 1 + 1)


def test_what_is_not_clear_is_refused_with_the_next_step(tunesmith: Tunesmith, tiny_base: Path) -> None:
    base = f"base:{tiny_base}"
    answer = tunesmith("regress", base, "--suite", "boolq")
    assert answer.code == 2 and "--base" in answer.err
    assert "Did you mean boolq?" in tunesmith("regress", base, "--base", base, "--suite", "bolq").err
    twice = tunesmith("regress", base, "--base", base, "--suite", "boolq", "--suite", "boolq")
    assert twice.code == 2 and "Two suites have the name 'boolq'" in twice.err
    long = tunesmith("regress", base, "--base", base, "--suite", "gsm8k")
    assert long.code == 2 and "A question of gsm8k and 256 tokens of reply do not fit" in long.err
    remote = tunesmith("regress", "url:http://127.0.0.1:9/v1#m", "--base", base, "--suite", "boolq")
    assert remote.code == 2 and "cannot say how likely" in remote.err
