"""The demo on the real default model, with few rows: minutes, and the model package from the registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_fast_demo_beats_the_prompted_base_by_40_points_and_serves_what_it_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tunesmith", "demo", "--fast", "--json", "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["run"] == str(run)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    means = {one["name"]: one["scores"]["exact"]["mean"] for one in report["evaluation"]["contenders"]}
    assert means["tuned"] - max(mean for name, mean in means.items() if name.startswith("base")) >= 0.40
    first = next(
        row
        for row in map(json.loads, (run / "replies.jsonl").read_text(encoding="utf-8").splitlines())
        if row["contender"] == "tuned"
    )
    assert report["served"]["reply"] == first["reply"]
    assert "http" not in (run / "report.html").read_text(encoding="utf-8").split("<body")[0]
