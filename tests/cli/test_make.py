"""`import`, `generate`, `augment` and `advise` as a user meets them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.teacher import teacher
from tunesmith.data.load import load_examples


def inventor(number: int, body: dict[str, Any]) -> str:
    texts = ["is the till at", "who has seen", "never again with", "nine times I wrote about", "a word on"]
    return json.dumps([f"{text} {'qrstuvwxyz'[number % 10] * 4} {number} {text[::-1]}" for text in texts])


@pytest.mark.slow
def test_import_accounts_for_the_settings_and_its_next_command_is_right(
    tunesmith: Callable[..., Any], tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "base_model": "some/base", "datasets": [{"path": tiny_file.name, "type": "chat_template"}], "adapter": "lora",
        "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "learning_rate": 0.001, "warp": 9,
        "micro_batch_size": 4, "num_epochs": 1, "sequence_len": 256, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "lora.yml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    answer = tunesmith("import", tmp_path / "lora.yml")
    assert answer.code == 0 and "warp" in answer.out and "No equal here" in answer.out
    assert "60 of 60 rows" in answer.out
    document = tunesmith("import", tmp_path / "lora.yml", "--force", "--json").document
    command = shlex.split(document["next"].removeprefix("Next: tunesmith "))
    assert command == ["train", "lora/recipe.yaml", "--out", str(tmp_path / "run")]
    assert tunesmith("check", "lora/data.jsonl").code == 0


def test_import_without_the_data_says_how_to_give_it(
    tunesmith: Callable[..., Any], tiny_file: Path, tmp_path: Path
) -> None:
    config = {"base_model": "b", "datasets": [{"path": "org/set", "type": "chat_template"}], "learning_rate": 1e-4}
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    answer = tunesmith("import", tmp_path / "c.yml", "--out", tmp_path / "o")
    assert answer.code == 0 and "--data NAME=FILE" in answer.out and "org/set" in answer.out
    given = ("--data", f"org/set={tiny_file}")
    again = tunesmith("import", tmp_path / "c.yml", "--out", tmp_path / "o", "--force", *given)
    assert again.code == 0 and "tunesmith train" in again.out
    assert tunesmith("import", tmp_path / "c.yml", "--data", "nonsense").code == 2


def test_generate_writes_drafts_for_review_and_the_key_goes_to_the_teacher(
    tunesmith: Callable[..., Any], tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "secret-key")
    out = tmp_path / "drafts.jsonl"
    with teacher(inventor) as server:
        answer = tunesmith("generate", "--like", tiny_file, "--teacher", server.spec, "--n", 12, "--out", out)
        assert set(server.keys) == {"Bearer secret-key"}
    assert answer.code == 0 and f"tunesmith review {out}" in answer.out and "300 + 30 tokens" in answer.out
    assert "secret-key" not in answer.out + out.read_text() + (tmp_path / "drafts.jsonl.replies").read_text()
    examples = [row.example for row in load_examples(out).examples]
    assert len(examples) == 12 and all(one.metadata["generated"]["seed_lines"] for one in examples)
    refused = tunesmith("generate", "--like", tiny_file, "--teacher", "http://x/v1#m", "--out", out)
    assert refused.code == 2 and "exists already" in refused.err


def test_generated_rows_are_not_trained_on_before_they_are_approved(
    tunesmith: Callable[..., Any], tiny_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "drafts.jsonl"
    with teacher(inventor) as server:
        tunesmith("generate", "--like", tiny_file, "--teacher", server.spec, "--n", 12, "--out", out)
    answer = tunesmith("train", out, "--base", tiny_base, "--out", tmp_path / "run")
    assert answer.code == 2 and "tunesmith review" in answer.err


def test_a_teacher_that_is_down_says_so_and_the_same_command_goes_on(
    tunesmith: Callable[..., Any], tiny_file: Path, tmp_path: Path
) -> None:
    arguments = ("augment", tiny_file, "--hard-negatives", "--n", 12, "--out", tmp_path / "o.jsonl", "--json")
    with teacher(lambda number, body: (400, "no") if number == 2 else inventor(number, body)) as server:
        first = tunesmith(*arguments, "--teacher", server.spec)
        assert first.code == 1 and "answered 400" in first.err and not (tmp_path / "o.jsonl").exists()
        document = tunesmith(*arguments, "--teacher", server.spec).document
    assert document["rows"] == 12 and document["requests_before"] == 2
    assert tunesmith("augment", tiny_file, "--teacher", "x").code == 2


def test_a_teacher_that_brings_no_row_leaves_no_file(
    tunesmith: Callable[..., Any], tiny_file: Path, tmp_path: Path
) -> None:
    with teacher(lambda number, body: "I would rather not.") as server:
        answer = tunesmith(
            "generate", "--like", tiny_file, "--teacher", server.spec, "--n", 5, "--out", tmp_path / "o.jsonl"
        )
    assert answer.code == 1 and "nothing was written" in answer.out and not (tmp_path / "o.jsonl").exists()


def test_generate_answers_logged_inputs(tunesmith: Callable[..., Any], tiny_file: Path, tmp_path: Path) -> None:
    asked = [
        {"messages": [{"role": "user", "content": f"no sign in {n}"}, {"role": "assistant", "content": "?"}]}
        for n in (1, 2)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    arguments = ("generate", "--like", tiny_file, "--inputs", tmp_path / "log.jsonl", "--out", tmp_path / "o.jsonl")
    with teacher(lambda number, body: "login") as server:
        assert tunesmith(*arguments, "--teacher", server.spec).code == 0
    assert [row.example.answer for row in load_examples(tmp_path / "o.jsonl").examples] == ["login", "login"]


def test_advise_says_whether_the_rows_are_enough(tunesmith: Callable[..., Any], tiny_file: Path) -> None:
    answer = tunesmith("advise", tiny_file, "--inputs", tiny_file)
    assert answer.code == 0 and "the rows are enough" in answer.out and "Inputs far from every row" in answer.out
    assert tunesmith("advise", tiny_file, "--json").document["curves"][0]["expected"][0]["rows"] == 60
