"""The serving benchmark runs to its end on a tiny model; how fast is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_measurements_run_and_no_answer_is_another_adapters(tiny_base: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "serve_load.py", "--quick", "--json", "--rank", "4"]
    command += ["--only", "batch", "load", "stream"]  # a tiny model does not learn names
    done = subprocess.run([*command, "--base", tiny_base], stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout)
    assert found["load"]["requests"] == 40
    assert found["load"]["failed"] == found["load"]["wrong_adapter"] == 0
    assert found["batch"]["tokens_per_s"].keys() == {"ours_16", "ours_1", "peft_16", "peft_1"}
    stream = found["stream"]["transformers_serve"]
    assert stream["same_text"] and stream["over"]["median"] > 0
