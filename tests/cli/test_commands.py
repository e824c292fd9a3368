"""Every command: one JSON document on stdout with --json, exit codes 0, 1 and 2, errors without a traceback."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.main import COMMANDS

Tunesmith = Callable[..., Any]
FAST = ("--epochs", 1, "--set", "threads=1", "--set", "precision=float32", "--set", "rank=4")


# -- data ---------------------------------------------------------------------------------------------------------


def test_check_of_a_good_file_exits_0(tunesmith: Tunesmith, tiny_file: Path) -> None:
    answer = tunesmith("check", tiny_file, "--json")
    assert (answer.code, answer.document["ok"]) == (0, True)
    text = tunesmith("check", tiny_file)
    assert "ok: 60 good rows of 60 lines" in text.out
    assert text.err == ""


def test_check_of_a_bad_file_exits_2_and_names_each_line(tunesmith: Tunesmith, bad_file: Path) -> None:
    answer = tunesmith("check", bad_file, "--json")
    assert answer.code == 2
    assert [problem["line"] for problem in answer.document["problems"]] == [61, 62]
    assert f"{bad_file}:61" in tunesmith("check", bad_file).out


def test_split_writes_two_files_and_the_same_again_is_refused_without_force(
    tunesmith: Tunesmith, tiny_file: Path, tmp_path: Path
) -> None:
    arguments = ("split", tiny_file, "--count", 12, "--out", tmp_path / "parts", "--json")
    document = tunesmith(*arguments).document
    assert (document["rows"], document["train"]["rows"], document["test"]["rows"]) == (60, 48, 12)
    assert len(Path(document["test"]["path"]).read_text().splitlines()) == 12
    again = tunesmith(*arguments)
    assert again.code == 2
    assert again.document["error"]["exit_code"] == 2
    assert tunesmith(*arguments, "--force").code == 0


def test_preview_shows_the_trained_tokens(tunesmith: Tunesmith, tiny_file: Path, tiny_base: Path) -> None:
    (row,) = tunesmith("preview", tiny_file, "--base", tiny_base, "--line", 2, "--json").document["rows"]
    assert row["line"] == 2
    assert len(row["ids"]) == len(row["trained"]) == len(row["tokens"])
    trained = [token for token, flag in zip(row["tokens"], row["trained"], strict=True) if flag]
    assert "".join(trained) == "refund<|im_end|>"
    text = tunesmith("preview", tiny_file, "--base", tiny_base, "--rows", 2).out
    assert "⟦card<|im_end|>⟧" in text
    assert "⟦refund<|im_end|>⟧" in text
    assert tunesmith("preview", tiny_file, "--base", tiny_base, "--line", 99).code == 2


# -- train, runs, models, evaluate --------------------------------------------------------------------------------


@pytest.mark.slow
def test_init_writes_a_recipe_that_trains_and_the_run_is_listed_and_measured(
    tunesmith: Tunesmith, tiny_file: Path, tiny_base: Path, tmp_path: Path, proof_here: None
) -> None:
    made = tunesmith("init", tiny_file, "--base", tiny_base, "--json").document
    assert made["values"]["base"] == str(tiny_base)
    assert tunesmith("init", tiny_file, "--base", tiny_base).code == 2  # it is there already
    assert tunesmith("runs", "--json").document == {"runs": []}

    out = tmp_path / "run"
    trained = tunesmith("train", made["recipe"], "--out", out, *FAST, "--json")
    assert trained.code == 0, trained.err
    document = trained.document
    assert document["run"] == str(out)
    assert [check["passed"] for check in document["proof"]] == [True] * 4
    assert document["metrics"]["steps"] == 4
    assert "learning rate" in trained.err
    assert "because" in trained.err

    (run,) = tunesmith("runs", "--json").document["runs"]
    assert (run["state"], run["directory"]) == ("finished", str(out))
    models = tunesmith("models", "--json").document["models"]
    assert [model["path"] for model in models if model["kind"] == "adapter"] == [str(out / "adapter")]
    assert document["id"] in tunesmith("runs").out
    assert document["id"] in tunesmith("models").out

    again = tunesmith("train", made["recipe"], "--out", out, *FAST, "--json")
    assert again.code == 2
    assert "finished run" in again.document["error"]["message"]

    specs = ("--contender", f"base:{tiny_base}", "--contender", f"adapter:{out}")
    measured = tunesmith("evaluate", tiny_file, *specs, "--limit", 9, "--out", tmp_path / "report", "--json")
    assert measured.code == 0, measured.err
    evaluation = measured.document
    assert evaluation["rows"] == 9
    assert [one["name"] for one in evaluation["contenders"]] == [specs[1], specs[3]]
    for one in evaluation["contenders"]:
        score = one["scores"]["exact"]
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
    (difference,) = evaluation["differences"]
    assert (difference["a"], difference["b"], difference["scorer"]) == (specs[1], specs[3], "exact")
    replies = (tmp_path / "report" / "replies.jsonl").read_text().splitlines()
    assert len(replies) == 18
    assert json.loads((tmp_path / "report" / "report.json").read_text())["evaluation"]["rows"] == 9
    assert (tmp_path / "report" / "report.html").is_file()
    assert "paired difference" in tunesmith("evaluate", tiny_file, *specs, "--limit", 12, "--scorer", "label").out


def test_a_run_that_fails_exits_1_and_is_listed_as_failed(
    tunesmith: Tunesmith, tiny_file: Path, tiny_base: Path, tmp_path: Path, proof_here: None
) -> None:
    arguments = ("train", tiny_file, "--base", tiny_base, "--out", tmp_path / "run", *FAST)
    answer = tunesmith(*arguments, "--set", "learning_rate=1e30", "--json")
    assert answer.code == 1
    assert answer.document["error"]["exit_code"] == 1
    (run,) = tunesmith("runs", "--json").document["runs"]
    assert run["state"] == "failed"
    assert "learning_rate" in run["reason"]
    refused = tunesmith("evaluate", tiny_file, "--contender", f"adapter:{tmp_path / 'run'}", "--json")
    assert refused.code == 2
    assert "is failed, not finished" in refused.document["error"]["message"]


def test_a_disk_that_is_full_before_the_run_begins_is_said_without_a_traceback(
    tunesmith: Tunesmith, tiny_file: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    answer = tunesmith("train", tiny_file, "--base", tiny_base, "--out", tmp_path / "run", *FAST)
    assert answer.code == 1
    assert "No space left on device" in answer.err
    assert "give the same command again" in answer.err


# -- mistakes of the user -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("split", "BAD"),
        ("init", "BAD"),
        ("preview", "BAD", "--base", "BASE"),
        ("train", "BAD", "--base", "BASE", "--out", "OUT"),
        ("evaluate", "BAD", "--contender", "base:BASE"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_refuses_a_bad_file_with_all_its_problems(
    tunesmith: Tunesmith, bad_file: Path, tiny_base: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    places = {"BAD": str(bad_file), "OUT": str(tmp_path / "out"), "BASE": str(tiny_base)}
    real = [places.get(argument, argument.replace("BASE", str(tiny_base))) for argument in arguments]
    answer = tunesmith(*real, "--json")
    assert answer.code == 2
    assert answer.document["total"] == 2
    assert f"{bad_file}:61" in answer.err
    assert not (tmp_path / "out").exists()
    assert sorted(path.suffix for path in tmp_path.glob("bad*")) == [".jsonl"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--set", "learning_rte=1"), "did you mean 'learning_rate'?"),
        (("--set", "rank"), "has no '='"),
        (("--set", "rank=[1"), "rank"),
        (("--set", "rank=0"), "'rank' is 0"),
        (("--epochs", "0"), "'epochs' is 0"),
        (("--base", "no/such"), "could not be had"),
        (("--validation", "none.jsonl"), "there is no such file"),
    ],
)
def test_train_names_what_is_wrong_with_its_arguments_and_writes_nothing(
    tunesmith: Tunesmith, tiny_file: Path, tmp_path: Path, extra: tuple[str, ...], words: str
) -> None:
    answer = tunesmith("train", tiny_file, "--out", tmp_path / "out", *extra, "--json")
    assert answer.code == 2
    assert words in answer.err
    assert words in answer.document["error"]["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [("train", "none.yaml"), ("train", "none.jsonl"), ("evaluate", "none.jsonl", "--contender", "base:x")]
)
def test_a_file_that_is_not_there_exits_2(tunesmith: Tunesmith, arguments: tuple[str, ...]) -> None:
    answer = tunesmith(*arguments, "--json")
    assert answer.code == 2
    assert answer.document


@pytest.mark.parametrize("spec", ["nonsense", "base:/no/such", "adapter:/no/such", "url:nowhere"])
def test_evaluate_refuses_a_contender_it_cannot_read(tunesmith: Tunesmith, tiny_file: Path, spec: str) -> None:
    answer = tunesmith("evaluate", tiny_file, "--contender", spec, "--json")
    assert answer.code == 2
    assert answer.document["error"]["message"]


def test_an_unknown_command_or_option_exits_2(tunesmith: Tunesmith, tiny_file: Path) -> None:
    assert tunesmith("trian").code == 2
    assert tunesmith("check", tiny_file, "--jsn").code == 2
    assert tunesmith("check").code == 2


def test_debug_shows_the_traceback(tunesmith: Tunesmith) -> None:
    from tunesmith.errors import InputError

    with pytest.raises(InputError):
        tunesmith("--debug", "train", "none.yaml")


@pytest.mark.parametrize("name", sorted(command.__name__.rstrip("_") for command in COMMANDS))
def test_every_command_has_help(tunesmith: Tunesmith, name: str) -> None:
    answer = tunesmith(name, "--help")
    assert answer.code == 0
    assert f" {name} [OPTIONS]" in answer.out
    assert "--json" in answer.out or name in ("chat", "serve")


def test_the_version_is_printed(tunesmith: Tunesmith) -> None:
    from tunesmith import __version__

    assert tunesmith("--version").out == f"tunesmith {__version__}\n"
