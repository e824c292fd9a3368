"""A run directory read while it grows: in whatever pieces its lines come, the same events, each once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.jobs.watch import Progress, dropped_rows, metrics_csv, step_metrics, tokens_seen
from tunesmith.runs import Run
from tunesmith.serve.records.events import Event

TORN = b'{"kind": "train", "step": 4, "lo\n'


def lines(lives: list[int], steps: int) -> bytes:
    """metrics.jsonl of a run whose lives begin after these steps; each validates after every second step."""
    data = b""
    for begin, end in zip([0, *lives], [*(life + 1 for life in lives), steps], strict=True):
        for step in range(begin + 1, end + 1):
            rows: list[dict[str, Any]] = [{"kind": "train", "step": step, "loss": 1 / step, "seconds": 1, "tokens": 5}]
            if step % 2 == 0:
                rows.append({"kind": "validation", "step": step, "loss": 2 / step, "best": True})
            data += b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        data += TORN if end < steps else b""
    return data


def read_in(folder: str, data: bytes, cuts: list[int]) -> list[Event]:
    run = Run(Path(folder))
    run.write_json("settings.json", {"num_steps": 8})
    path = run.directory / "metrics.jsonl"
    path.unlink(missing_ok=True)
    progress, events = Progress(run), []
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        with path.open("ab") as file:
            file.write(data[begin:end])
        events += progress.news()
    return events + progress.news(ended=True)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_lines_that_come_in_pieces_and_again_after_a_kill_are_each_told_once(data: st.DataObject) -> None:
    lives = sorted(data.draw(st.lists(st.integers(0, 3), max_size=2, unique=True)))
    written = lines([2 * life for life in lives], 8)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=6)))
    with tempfile.TemporaryDirectory() as folder:
        told: dict[str | None, Event] = {}
        for event in read_in(folder, written, cuts):
            told.setdefault(event.key, event)  # as the database does
        undisturbed = read_in(folder, lines([], 8), [])
        run = Run(Path(folder))
        (run.directory / "metrics.jsonl").write_bytes(written)
        assert tokens_seen(run) == 40
        assert [row["full_valid_loss"] for row in step_metrics(run).values()] == [
            None,
            1,
            None,
            0.5,
            None,
            1 / 3,
            None,
            0.25,
        ]
        assert len(metrics_csv(step_metrics(run).values()).splitlines()) == 9
    assert {event.key: event.message for event in undisturbed} == {key: event.message for key, event in told.items()}
    assert [event.key for event in undisturbed] == [f"step {step}" for step in range(1, 9)]
    assert undisturbed[1].message == "Step 2/8: training loss=0.50, validation loss=1.00"


def test_rows_left_out_are_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert dropped_rows(run) == []
    rows = [{"line": 1, "example": "a", "status": "trained", "reason": ""}]
    rows.append({"line": 2, "example": None, "status": "dropped", "reason": "blank line"})
    run.write_lines("ledger.jsonl", rows)
    assert dropped_rows(run) == []
    rows += [{"line": 3, "example": "b", "status": "dropped", "reason": "600 tokens, the limit is 512"}]
    run.write_lines("ledger.jsonl", rows)
    (event,) = dropped_rows(run)
    assert event.level == "warn"
    assert event.message == "1 of 3 rows are not trained on. The first: line 3, 600 tokens, the limit is 512"


def test_figures_of_pairs_follow_openais_columns(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_json("settings.json", {"num_steps": 1})
    pair = {
        "margin": 0.5,
        "pair_accuracy": 0.75,
        "chosen_change": -1.0,
        "rejected_change": -6.0,
        "ranking_accuracy": 1.0,
    }
    run.metric(kind="train", step=1, loss=0.6, seconds=1, tokens=5, **pair)
    run.metric(kind="validation", step=1, loss=0.5, best=True, **pair)
    (event,) = Progress(run).news()
    assert event.data and (event.data["train_margin"], event.data["valid_pair_accuracy"]) == (0.5, 0.75)
    header, row = metrics_csv(step_metrics(run).values()).decode().splitlines()
    assert header.startswith("step,train_loss,") and header.split(",")[7] == "train_margin"
    assert row.endswith("0.5,0.75,-1.0,-6.0,0.5,0.75,-1.0,-6.0")
