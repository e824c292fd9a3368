"""`tunesmith decide` from the command line, with a tiny base that knows nothing: the floor is the honest answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.decide import pick_scorer, read_duration
from tunesmith.decide.rows import digest
from tunesmith.errors import InputError

Tunesmith = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path, tiny_rows: Callable[[int], list[dict[str, Any]]]) -> tuple[Path, Path]:
    """60 training rows, three of which are asked again in the 36 test rows."""
    rows = tiny_rows(93)
    parts = {"train.jsonl": rows[:60], "test.jsonl": rows[57:]}
    for name, part in parts.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return tmp_path / "train.jsonl", tmp_path / "test.jsonl"


@pytest.mark.slow
def test_a_decision_is_made_written_and_gone_on_with(
    tunesmith: Tunesmith, files: tuple[Path, Path], tiny_base: Path, tmp_path: Path, proof_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tunesmith.retrieve.encoder.find_encoder", lambda dense: (None, "words only"))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "help.md").write_text("# Cards\n\nA lost card is blocked.\n\n# Money\n\nMoney comes back in a week.\n")
    train, test = files
    out = tmp_path / "out"
    command = ("decide", train, "--test", test, "--base", tiny_base, "--out", out, "--docs", docs, "--budget", "4min",
               "--margin", 30)  # fmt: skip
    answer = tunesmith(*command, "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert document["verdict"]["chosen"] == "floor", document["verdict"]
    measured = {one["name"] for one in document["contenders"]}
    assert {"floor", "prompt", "few-shot", "few-shot nearest", "retrieval"} <= measured
    assert {"fine-tune", "fine-tune + retrieval"} <= measured
    assert "big model" in {one["name"] for one in document["not_measured"]}
    assert document["rows"]["asked_again"] == 3
    ids = json.loads((out / "rows.json").read_text())
    for name, one in document["rows"]["sets"].items():
        assert one["sha256"] == digest(ids[name])
    assert not set(ids["test"]) & {*ids["train"], *ids["validation"]}
    page = (out / "verdict.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    replies = (out / "replies" / "prompt.jsonl").read_text()

    again = tunesmith(*command[:-1], 45)  # another margin: nothing is measured anew
    assert again.code == 0, again.err
    assert again.out.count("measured before") == len(measured)
    assert (out / "replies" / "prompt.jsonl").read_text() == replies
    other = tunesmith(*command, "--seed", 1)
    assert other.code == 2
    assert "Choose another --out" in other.err


def test_nothing_is_sent_out_of_the_house_before_somebody_said_so(
    tunesmith: Tunesmith, files: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ("decide", files[0], "--test", files[1], "--out", tmp_path / "out", "--url", "https://example.com/v1#big")
    answer = tunesmith(*command)
    assert answer.code == 2
    assert "Say --data-may-leave yes or no." in answer.err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("20min", 1200.0), ("0.5 h", 1800.0)])
def test_a_budget_is_read_in_its_unit(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["20", "0min", "-3s", "soon"])
def test_a_budget_without_a_unit_or_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_duration(text)


@pytest.mark.parametrize(
    ("answers", "scorer"),
    [
        (["yes", "no"] * 4, "exact"),
        ([f'{{"a": {number}}}' for number in range(8)], "json_fields"),
        ([f"answer {number}" for number in range(8)], "normalised"),
        ([f"a longer free text of number {number}" for number in range(8)], "rouge_l"),
    ],
)
def test_the_scorer_follows_the_form_of_the_answers(answers: list[str], scorer: str) -> None:
    from tests.evaluate.contenders import label_example

    assert pick_scorer([label_example(f"question {number}", text) for number, text in enumerate(answers)])[0] == scorer


def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(
    tunesmith: Tunesmith, files: tuple[Path, Path], tmp_path: Path
) -> None:
    train, test = files
    same = tunesmith("decide", train, "--test", train, "--out", tmp_path / "a")
    assert (same.code, "0 rows to train and choose by" in same.err) == (2, True)
    docs = tunesmith("decide", train, "--test", test, "--out", tmp_path / "a", "--docs", tmp_path / "nothing")
    assert (docs.code, "is neither documents nor an index" in docs.err) == (2, True)
    scorer = tunesmith("decide", train, "--test", test, "--out", tmp_path / "a", "--scorer", "json_fields")
    assert scorer.code == 2
