"""Shipping and rolling back as a user does: a gate says yes or no, an alias moves, decisions are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.facts import weights_sha256
from tunesmith.store import find_folder

Tunesmith = Callable[..., Any]
FAST = ("--epochs", 1, "--set", "threads=1", "--set", "precision=float32", "--set", "rank=4")


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """`adapter(name, gain)`: a folder in PEFT's format, and beside it a report in which it beats base:m by `gain`."""

    def make(name: str, gain: float = 0.2) -> Path:
        import numpy as np
        from safetensors.numpy import save_file

        folder = tmp_path / name
        folder.mkdir()
        save_file({"w": np.frombuffer(name.encode().ljust(8), dtype=np.float32)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "m"}))
        row = {"a": "base:m", "b": f"adapter:{folder}", "scorer": "exact", "p": 0.001 if gain > 0 else 1.0}
        row |= {"difference": gain, "low": gain - 0.1, "high": gain + 0.1}
        report = {
            "created": "2999-01-01T00:00:00+00:00",
            "main_scorer": "exact",
            "weights": {f"adapter:{folder}": {"base": "b", "adapter": weights_sha256(folder)}},
            "evaluation": {"rows": 100, "contenders": [], "differences": [row]},
        }
        (folder / "report.json").write_text(json.dumps(report))
        return folder

    return make


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate.yaml"
    path.write_text("win: {against: 'base:m', by_points: 5}\n")
    return path


def test_an_alias_moves_when_the_gate_says_yes_and_back_again(
    tunesmith: Tunesmith, adapter: Callable[..., Path], gate: Path
) -> None:
    first, second = adapter("first"), adapter("second")
    for version, folder in enumerate((first, second), start=1):
        shipped = tunesmith("ship", f"adapter:{folder}", "--as", "support@prod", "--gate", gate, "--json")
        assert shipped.code == 0, shipped.err
        assert (shipped.document["action"], shipped.document["version"]) == ("shipped", version)
        assert find_folder("support@prod") == folder
    (alias,) = [one for one in tunesmith("models", "--json").document["models"] if one["kind"] == "alias"]
    assert (alias["name"], alias["version"], alias["path"]) == ("support@prod", 2, str(second))
    assert "support@prod" in tunesmith("models").out

    back = tunesmith("rollback", "support@prod", "--because", "it swears", "--json").document
    assert (back["version"], back["to_version"]) == (3, 1)
    assert find_folder("support@prod") == first
    assert json.loads((Path(back["decision"]) / "decision.json").read_text())["because"] == "it swears"
    assert "its first: there is none before" in tunesmith("rollback", "support@prod").err
    assert tunesmith("rollback", "support@prod", "--to", 2).code == 0
    assert find_folder("support@prod") == second
    assert tunesmith("rollback", "support@prod", "--to", 9).code == 2
    assert tunesmith("rollback", "support@prod", "--to", 2).code == 2  # it is there already
    decisions = tunesmith("rollback", "support@prod", "--history", "--json").document["decisions"]
    assert [(row["version"], row["restores"]) for row in decisions] == [(4, 2), (3, 1), (2, None), (1, None)]
    assert "rolled back to 2" in tunesmith("rollback", "support@prod", "--history").out


def test_what_was_rolled_back_from_is_not_what_was_before(
    tunesmith: Tunesmith, adapter: Callable[..., Path], gate: Path
) -> None:
    good, bad, next_one = adapter("good"), adapter("bad"), adapter("next")
    for step in (good, bad, None, next_one, None):
        arguments = ("ship", step, "--as", "a@b", "--gate", gate) if step else ("rollback", "a@b")
        assert tunesmith(*arguments).code == 0
    assert find_folder("a@b") == good


def test_a_no_is_exit_3_with_reasons_and_is_kept_with_its_evidence(
    tunesmith: Tunesmith, adapter: Callable[..., Path], gate: Path, tmp_path: Path
) -> None:
    good, weak = adapter("good"), adapter("weak", gain=-0.05)
    assert tunesmith("ship", good, "--as", "support@prod", "--gate", gate).code == 0
    refused = tunesmith("ship", weak, "--as", "support@prod", "--gate", gate, "--json")
    assert refused.code == 3
    assert refused.document["version"] is None
    assert "-5.0 points over base:m" in refused.document["reasons"][0]
    assert find_folder("support@prod") == good
    kept = Path(refused.document["decision"])
    assert sorted(path.name for path in kept.iterdir()) == ["decision.json", "gate.yaml", "report.json"]
    assert (kept / "report.json").read_bytes() == (weak / "report.json").read_bytes()
    row, _ = tunesmith("rollback", "support@prod", "--history", "--json").document["decisions"]
    assert (row["action"], row["evidence"]) == ("refused", str(kept))

    (good / "report.json").unlink()
    missing = tunesmith("ship", good, "--as", "support@prod", "--gate", gate)
    assert missing.code == 3
    assert "There is no report.json" in missing.out
    assert f"tunesmith evaluate TEST --contender base:m --contender adapter:{good}" in missing.out
    assert tunesmith("ship", good, "--as", "prod", "--gate", gate).code == 2
    assert tunesmith("ship", tmp_path / "none", "--as", "support@prod", "--gate", gate).code == 2


def test_weights_that_changed_or_are_gone_are_not_what_was_shipped(
    tunesmith: Tunesmith, adapter: Callable[..., Path], gate: Path
) -> None:
    first, second = adapter("first"), adapter("second")
    for folder in (first, second):
        assert tunesmith("ship", folder, "--as", "support@prod", "--gate", gate).code == 0
    (second / "adapter_model.safetensors").write_bytes((first / "adapter_model.safetensors").read_bytes())
    assert "tunesmith rollback support@prod" in tunesmith("chat", "support@prod", "--message", "Hi").err
    first.rename(first.with_name("moved"))
    assert "which is gone" in tunesmith("rollback", "support@prod").err


@pytest.mark.slow
def test_the_gate_reads_what_the_other_commands_write(
    tunesmith: Tunesmith, tiny_file: Path, tiny_base: Path, tmp_path: Path, proof_here: None
) -> None:
    """train, evaluate, check and regress on a tiny model: the figures say no, the evidence is found and fits."""
    run, spec = tmp_path / "run", f"adapter:{tmp_path / 'run'}"
    base = f"base:{tiny_base}"
    assert tunesmith("train", tiny_file, "--base", tiny_base, "--out", run, *FAST).code == 0
    test = tmp_path / "test.jsonl"
    test.write_text(tiny_file.read_text().replace("case", "issue").replace("card", "parcel"))
    contenders = ("--contender", base, "--contender", spec, "--scorer", "exact", "--scorer", "stopped")
    assert tunesmith("evaluate", test, *contenders, "--limit", 6, "--max-tokens", 4, "--out", run).code == 0
    checked = tunesmith("check", tiny_file, "--against", test, "--json")
    (run / "check.json").write_text(checked.out)
    rows = [{"question": f"Q{n}", "choices": ["yes", "no"], "answer": n % 2} for n in range(6)]
    suite = tmp_path / "own.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = tunesmith("regress", spec, "--base", tiny_base, "--suite", suite, "--out", run)
    assert measured.code == 0, measured.err
    gate = tmp_path / "gate.yaml"
    gate.write_text(
        f"win: {{against: '{base}', by_points: 50}}\nsuites: {{down_at_most_points: 100, need: [own]}}\n"
        "format: {scorer: stopped, at_least_percent: 0}\ncontamination: {near_at_most: 60}\n"
    )
    shipped = tunesmith("ship", spec, "--as", "support@prod", "--gate", gate, "--json")
    assert shipped.code == 3, shipped.err
    assert {one["name"]: one["passed"] for one in shipped.document["checks"]} == {
        "win": False,
        "suites": True,
        "format": True,
        "contamination": True,
    }
    assert not any(one["todo"] for one in shipped.document["checks"])  # nothing was missing
    gate.write_text("format: {scorer: stopped, at_least_percent: 0}\n")
    assert tunesmith("ship", run, "--as", "support@prod", "--gate", gate).code == 0
    again = tunesmith("evaluate", test, "--contender", "adapter:support@prod", "--limit", 2, "--max-tokens", 2)
    assert again.code == 0, again.err
