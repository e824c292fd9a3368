"""A sweep: every combination in a folder of its own, on one base in memory, as good as each run alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith.worker
from tunesmith.runs import Run

Tunesmith = Callable[..., Any]


@pytest.fixture
def write_recipe(tiny_file: Path, tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "r.yaml", **changes: Any) -> Path:
        values = {"data": str(tiny_file), "base": str(tiny_base), "epochs": 1, "threads": 1, "precision": "float32"}
        path = tmp_path / name
        path.write_text(json.dumps(values | changes))  # JSON is YAML
        return path

    return write


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that the trainer loads, in order."""
    seen = []
    load = tunesmith.worker.load_base

    def note(name: str, **options: Any) -> Any:
        seen.append(name)
        return load(name, **options)

    monkeypatch.setattr(tunesmith.worker, "load_base", note)
    return seen


def adapter_sha256(run: Path) -> str:
    return str(Run(run).status["adapter_sha256"])


@pytest.mark.slow
def test_a_run_of_a_sweep_is_to_the_bit_what_it_is_alone_and_one_that_fails_stops_no_other(
    tunesmith: Tunesmith, write_recipe: Callable[..., Path], tmp_path: Path, proof_here: None, loads: list[str]
) -> None:
    recipe = write_recipe(rank=8, sweep={"learning_rate": [1e30, 0.01], "rank": [2, 4]})
    out = tmp_path / "out"
    answer = tunesmith("train", recipe, "--out", out, "--json")
    assert answer.code == 1
    assert len(loads) == 1
    runs = answer.document["runs"]
    assert [run["error"] is None for run in runs] == [True, True, False, False]
    assert runs[0]["validation_loss"] <= runs[1]["validation_loss"]
    assert {run["name"] for run in runs[:2]} == {"learning_rate-0.01_rank-2", "learning_rate-0.01_rank-4"}
    assert "lower learning_rate" in runs[2]["error"]
    assert "2 of 4 runs failed: learning_rate-1e+30_rank-2, learning_rate-1e+30_rank-4" in answer.err
    assert answer.document["comparable"]

    alone = tunesmith("train", write_recipe("alone.yaml", rank=4, learning_rate=0.01), "--out", tmp_path / "alone")
    assert alone.code == 0
    assert adapter_sha256(tmp_path / "alone") == adapter_sha256(out / "learning_rate-0.01_rank-4")

    before = {path: path.stat().st_mtime_ns for path in (out / runs[0]["name"]).rglob("*.safetensors")}
    again = tunesmith("train", recipe, "--out", out)  # the finished ones stay
    assert again.code == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "learning_rate-0.01_rank-2" in again.out


@pytest.mark.slow
def test_full_fine_tuning_leaves_no_trace_in_the_next_run(
    tunesmith: Tunesmith, write_recipe: Callable[..., Path], tmp_path: Path, proof_here: None, loads: list[str]
) -> None:
    recipe = write_recipe(learning_rate=0.01, sweep={"method": ["full", "lora"], "seed": [0, 1]})
    answer = tunesmith("train", recipe, "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    assert not answer.document["comparable"]  # another seed splits other rows off
    assert "do not compare" in answer.err
    assert "The base is loaded again" in answer.err
    assert tunesmith("train", write_recipe("alone.yaml", learning_rate=0.01), "--out", tmp_path / "alone").code == 0
    assert adapter_sha256(tmp_path / "alone") == adapter_sha256(tmp_path / "out" / "method-lora_seed-0")
    full = [Run(tmp_path / "out" / f"method-full_seed-{seed}").status for seed in (0, 1)]
    assert full[0]["base_sha256"] == full[1]["base_sha256"]
    assert full[0]["model_sha256"] != full[1]["model_sha256"]


@pytest.mark.parametrize(
    ("sweep", "extra", "words"),
    [
        ({"rank": [2, 4]}, (), "A sweep needs --out"),
        ({"rank": 2}, ("--out", "OUT"), "needs a list for each key that varies"),
        ({"rank": []}, ("--out", "OUT"), "needs a list for each key that varies"),
        ([], ("--out", "OUT"), "needs a list for each key that varies"),
        ({"rank": [2, 0]}, ("--out", "OUT"), "'rank' is 0"),
        ({"rnk": [2]}, ("--out", "OUT"), "did you mean 'rank'?"),
        ({"rank": [2, 2]}, ("--out", "OUT"), "are called rank-2"),
        ({"epochs": [1]}, ("--out", "OUT", "--epochs", 2), "epochs is given on the command line"),
        ({"targets": ["all-linear", ["q_proj", "w_proj"]]}, ("--out", "OUT"), "targets w_proj are no layers"),
        ({"method": ["lora", "full"], "rank": [4]}, ("--out", "OUT"), "rank belong to an adapter"),
    ],
)
def test_a_mistake_in_any_combination_shows_before_anything_is_trained(
    tunesmith: Tunesmith, write_recipe: Callable[..., Path], tmp_path: Path, sweep: Any, extra: Any, words: str
) -> None:
    out = tmp_path / "out"
    arguments = (out if argument == "OUT" else argument for argument in extra)
    answer = tunesmith("train", write_recipe(sweep=sweep), *arguments, "--json")
    assert answer.code == 2
    assert words in answer.document["error"]["message"]
    assert not out.exists()
