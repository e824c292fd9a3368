"""What `tunesmith train` shows while it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.runs import Run


def test_with_json_every_metric_line_comes_on_stderr_and_one_document_on_stdout(
    tunesmith: Callable[..., Any], tiny_file: Path, tiny_base: Path, tmp_path: Path, proof_here: None
) -> None:
    arguments = ("--base", tiny_base, "--out", tmp_path / "run", "--epochs", 1, "--set", "threads=1")
    answer = tunesmith("train", tiny_file, *arguments, "--set", "precision=float32", "--json")
    assert answer.code == 0, answer.err
    shown = [json.loads(line) for line in answer.err.splitlines() if line.startswith("{")]
    assert shown == Run(tmp_path / "run").metrics()
    assert answer.document["metrics"]["steps"] == 4
    last = next(line for line in reversed(answer.err.splitlines()) if "tokens/s" in line)
    assert "GiB" in last
    assert "validation loss" in last
