"""`tunesmith evaluate` as a user meets it: few-shot, passages, a judge, kept replies, what is said of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_rows
from tests.teacher import teacher

Tunesmith = Callable[..., Any]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rows = make_rows(18)
    return write(tmp_path / "train.jsonl", rows[6:]), write(tmp_path / "test.jsonl", rows[:6])


def test_contenders_of_every_kind_are_measured_and_asked_once(
    tunesmith: Tunesmith,
    files: tuple[Path, Path],
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunesmith.retrieve.encoder.SHIPPED", "not_installed")  # by words alone: loads in no time
    train, test = files
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "cards.md").write_text("# Cards\n\nA lost card is blocked at once.\n")
    kinds = ("", "+fewshot:2:nearest", f"+rag:{tmp_path / 'docs'}?k=1")
    lines = [part for kind in kinds for part in ("--contender", f"base:{tiny_base}{kind}")]
    command = ("evaluate", test, *lines, "--examples", train, "--scorer", "exact", "--scorer", "label")
    first = tunesmith(*command, "--max-tokens", 4, "--out", tmp_path / "out", "--json")
    assert first.code == 0, first.err
    plain, few, rag = first.document["contenders"]
    assert plain["tokens"]["prompt_mean"] < rag["tokens"]["prompt_mean"] < few["tokens"]["prompt_mean"]
    assert {one["one_request_s"]["rows"] for one in (plain, few, rag)} == {6}
    replies = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text().splitlines()]
    assert [reply["examples_shown"] for reply in replies[:3]] == [0, 2, 0]
    assert "cards.md" in replies[2]["passages"][0]["source"]
    assert "p (Holm)" in first.err and "macro_f1" in first.err and "one request" in first.err

    again = tunesmith(*command, "--max-tokens", 4, "--json")
    assert [one["cached"] for one in again.document["contenders"]] == [6, 6, 6]
    assert again.document["contenders"][0]["one_request_s"] == plain["one_request_s"]
    assert "--no-cache asks again" in again.err
    anew = tunesmith("evaluate", test, *lines[:2], "--max-tokens", 4, "--no-cache", "--json")
    assert anew.document["contenders"][0]["cached"] == 0


def test_a_judge_on_the_command_line_judges_and_is_kept_too(tunesmith: Tunesmith, files: tuple[Path, Path]) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        if "<answer_A>" not in asked:
            return "long answer" if body["model"] == "long" else "short"
        return "[[A]]" if "<answer_A>\nlong" in asked else "[[B]]"

    with teacher(script) as server:
        url = f"url:{server.spec.partition('#')[0]}"
        command = ("evaluate", files[1], "--contender", f"{url}#short", "--contender", f"{url}#long?prompt_price=1")
        refused = tunesmith(*command, "--scorer", f"judge:{url}#judge", "--json")
        assert refused.code == 2 and "completion_price" in refused.err
        command = (*command[:-1], f"{url}#long?prompt_price=1&completion_price=2")
        first = tunesmith(*command, "--scorer", f"judge:{url}#judge", "--json")
        assert first.code == 0, first.err
        asked = len(server.asked)
        again = tunesmith(*command, "--scorer", f"judge:{url}#judge", "--json")
        assert len(server.asked) == asked == 6 + 6 + 12
    scores = [one["scores"][f"judge:{url}#judge"]["mean"] for one in first.document["contenders"]]
    assert scores == [0.5, 1.0] and "win_rate" in first.err
    assert first.document["contenders"][1]["cost"] == pytest.approx(6 * (100 * 1 + 10 * 2) / 1e6)
    assert "whether a server has another model" in again.err


def test_examples_that_are_missing_or_measured_are_refused(
    tunesmith: Tunesmith, files: tuple[Path, Path], tiny_base: Path
) -> None:
    train, test = files
    missing = tunesmith("evaluate", test, "--contender", f"fewshot:{tiny_base}:2")
    assert missing.code == 2 and "--examples" in missing.err
    same = tunesmith("evaluate", test, "--contender", f"fewshot:{tiny_base}:2", "--examples", test)
    assert same.code == 2 and "take these rows out of the examples" in same.err


def test_the_vectors_of_many_texts_are_made_once(tunesmith_home: Path) -> None:
    """With a stand-in for the model, which takes seconds to load."""
    import numpy as np

    from tunesmith.cli.contenders import KeptVectors

    class Counting:
        name, identity, calls = "m", "m1", 0

        def encode(self, texts: Sequence[str]) -> Any:
            self.calls += 1
            return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    encoder = Counting()
    texts = [f"{'x' * number}" for number in range(150)]
    found = [KeptVectors(encoder).encode(these) for these in (texts, texts, ["one", *texts], texts[:2])]
    assert encoder.calls == 3 and (found[0] == found[1]).all() and found[2].shape == (151, 2)
