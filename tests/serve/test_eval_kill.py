"""An eval run while its server is killed, again and again: every row ends up counted once (slow)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server_process import start_server

ROWS, KILLS, SEED = 60, 4, 7
CHECK: Any = {"type": "string_check", "name": "c", "input": "{{sample.output_text}}", "reference": "{{item.label}}",
              "operation": "ne"}  # fmt: skip


def start(folder: Path) -> tuple[subprocess.Popen[str], openai.OpenAI]:
    process, url = start_server(folder)
    return process, openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_server_goes_on_with_the_run(tmp_path: Path, tiny_base: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "tiny")
    dice = random.Random(SEED)
    process, client = start(tmp_path)
    config: Any = {"type": "custom", "item_schema": {}, "include_sample_schema": True}
    made = client.evals.create(data_source_config=config, testing_criteria=[CHECK])
    source: Any = {
        "type": "completions", "model": "tiny", "sampling_params": {"max_completion_tokens": 60},
        "source": {"type": "file_content", "content": [{"item": {"text": str(n), "label": ""}} for n in range(ROWS)]},
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "Say {{item.text}}"}]},
    }  # fmt: skip
    run = client.evals.runs.create(made.id, data_source=source)
    kept, kills = 0, 0
    deadline = time.monotonic() + 600
    while run.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, run
        time.sleep(dice.uniform(0.05, 0.3))
        if kills < KILLS and run.result_counts.passed > kept:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            process, client = start(tmp_path)
        before = run.result_counts.passed
        run = client.evals.runs.retrieve(run.id, eval_id=made.id)
        assert run.result_counts.passed >= before, "a row was lost"
        kept = max(kept, before)
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=100))
    process.terminate()
    process.wait(60)
    assert kills == KILLS
    assert run.status == "completed"
    assert sorted(item.datasource_item_id for item in items) == list(range(ROWS))
    counts = run.result_counts
    assert counts.total == ROWS == counts.passed + counts.failed + counts.errored == len(items)
    assert run.per_model_usage[0].invocation_count == ROWS
