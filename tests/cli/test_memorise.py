"""`tunesmith memorise` plants canaries, measures, and says when there is nothing to measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Answer

Tunesmith = Callable[..., Answer]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows))
    return path


def test_planting_writes_the_rows_and_the_secrets(tunesmith: Tunesmith, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [(f"q{n}", f"a{n}") for n in range(5)])
    out = tmp_path / "planted.jsonl"
    answer = tunesmith("memorise", "--train", train, "--canaries", 2, "--repeats", 3, "--out", out, "--json")
    assert answer.code == 0
    assert answer.document["rows"] == 11 == len(out.read_text().splitlines())
    secret = answer.document["canaries"][0]["secret"]
    assert out.read_text().count(secret) == 3
    assert secret in (tmp_path / "planted.canaries.jsonl").read_text()
    assert tunesmith("memorise", "--train", train, "--canaries", 2, "--out", out).code == 2


def test_a_local_model_is_measured_and_its_canaries_found(
    tunesmith: Tunesmith, tiny_base: Path, tmp_path: Path
) -> None:
    long = "a long answer that says quite a few things about the parcel and its way"
    train = write(tmp_path / "train.jsonl", [(f"q{n}", f"{long} {n}") for n in range(4)])
    held_out = write(tmp_path / "held.jsonl", [(f"h{n}", f"{long} {n + 9}") for n in range(4)])
    planted = tmp_path / "planted.jsonl"
    tunesmith("memorise", "--train", train, "--canaries", 1, "--out", planted)
    answer = tunesmith("memorise", f"base:{tiny_base}", "--train", planted, "--held-out", held_out, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["verbatim"]["rows"] == {"train": 4, "held_out": 4}
    assert answer.document["canaries"]["most"] == 6
    assert "0.0 % of training answers come back word for word" in answer.err


def test_labels_are_said_to_be_meaningless_and_unclear_wishes_refused(
    tunesmith: Tunesmith, tiny_base: Path, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", [(f"q{n}", "ab"[n % 2]) for n in range(8)])
    held_out = write(tmp_path / "held.jsonl", [(f"h{n}", "ab"[n % 2]) for n in range(8)])
    answer = tunesmith("memorise", f"base:{tiny_base}", "--train", train, "--held-out", held_out, "--json")
    assert answer.document["verbatim"] is None and "2 labels" in answer.document["meaningless"]
    for arguments in (["--canaries", 2], [], ["base:x"]):
        assert tunesmith("memorise", *arguments, "--train", train).code == 2
