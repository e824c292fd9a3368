"""The benchmark against ourselves on the tiny base, its arithmetic, and that its pins are those of the lock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import train_speed
from benchmarks.peers import install
from benchmarks.train_speed import CASES, PEERS, Case, Peer, Plan, Worker, WorkerError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def case(tiny_file: Path) -> Case:
    return replace(CASES["shared"], data=tiny_file)


@pytest.mark.slow
def test_our_worker_takes_turns_and_says_what_it_trained(tiny_base: Path, case: Case, tmp_path: Path) -> None:
    plan = Plan(model=tiny_base, repeats=1, steps=1, warmup=1)
    job = train_speed.our_job(case, plan=plan, folder=tmp_path, threads=1)
    with Worker(train_speed.OURS, job, folder=tmp_path / "ours", threads=1) as ours:
        batches = ours.facts["batches"]
        assert [len(batch) for batch in batches] == [16, 16, 16]  # two steps, and the one a peer's last step ends at
        assert len(ours.facts["rates"]) == 3
        for batch in batches[:2]:
            (step,) = ours.turn(1)["steps"]
            assert step["tokens"] == sum(len(row["input_ids"]) for row in batch)
            assert step["labels"] == sum(label != -100 for row in batch for label in row["labels"])
            assert 0 < step["computed"] < step["tokens"]  # the system prompt is shared
            assert step["wall_s"] > 0 < step["cpu_s"]


@pytest.mark.slow
def test_ours_against_ours_trains_the_same_tokens_to_the_same_losses(tiny_base: Path, case: Case) -> None:
    plan = Plan(model=tiny_base, repeats=2, steps=1, warmup=1)
    (row,) = train_speed.measure(plan, cases={"shared": case}, peers={"self": PEERS["self"]})
    assert row.get("error") is None
    assert row["loss_difference"] == 0
    assert 0.1 < row["low"] <= row["ratio"] <= row["high"] < 10
    assert row["repeated_tokens"] > 0.3
    cells = train_speed.markdown({"cases": [row], "machine": {}, "versions": {}, "plan": ""}).split("\n")[0]
    assert cells.startswith("| shared | self | 2 | ") and cells.count("|") == 10


def test_a_worker_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="stopped with status 2:\n.*nobody_worker.py"):
        Worker(Peer("nobody"), {"device": "cuda"}, folder=tmp_path / "peer", threads=1)  # there it runs in this Python


def _turn(*seconds: float, loss: float = 2.0, labels: int = 3) -> dict[str, Any]:
    step = {"loss": loss, "tokens": 100, "labels": labels}
    return {"steps": [step | {"wall_s": wall_s, "cpu_s": wall_s} for wall_s in seconds], "peak_gib": 1.0}


def _measured(*turns: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return {"wall": {"turns": turns, "batches": [[{"input_ids": [1]}]], "settings": {}, "versions": {}}}


def test_the_ratio_is_the_median_over_the_turns_after_the_warm_up() -> None:
    warmup = (_turn(100.0), _turn(1.0))
    turns = [(_turn(1.0, 1.0), _turn(peer, peer)) for peer in (2.0, 5.0, 3.0)]
    row = train_speed.summarise(_measured(warmup, *turns))
    assert (row["low"], row["ratio"], row["high"]) == (2.0, 3.0, 5.0)
    assert (row["tokens_per_s"], row["peer_tokens_per_s"]) == (100.0, 100 / 3)


def test_the_loss_difference_is_the_largest_of_any_step() -> None:
    turns = [(_turn(1.0, loss=2.02), _turn(1.0, loss=2.0)), (_turn(1.0), _turn(1.0))]
    assert train_speed.summarise(_measured(*turns))["loss_difference"] == pytest.approx(0.01)


def test_other_labels_than_the_peers_are_refused() -> None:
    with pytest.raises(WorkerError, match="not the same work"):
        train_speed.summarise(_measured((_turn(1.0), _turn(1.0)), (_turn(1.0, labels=4), _turn(1.0))))


def test_the_unshared_case_is_the_shared_one_without_its_system_prompt() -> None:
    shared, none_shared = (train_speed.case_rows(CASES[name]) for name in ("shared", "none_shared"))
    assert [row[1:] for row in shared] == none_shared
    assert len(train_speed.case_rows(CASES["long_answers"])) == 200


def test_tokens_count_as_repeated_when_their_whole_path_is() -> None:
    batch = [{"input_ids": ids} for ids in ([1, 2, 3], [1, 2, 4], [5, 2, 3])]
    assert train_speed.repeated_tokens([batch]) == pytest.approx(2 / 9)


def test_the_peers_run_on_our_torch() -> None:
    pinned = (ROOT / "requirements.lock").read_text(encoding="utf-8").split("\n")
    assert set(install.TORCH) <= set(pinned)
    for peer in ("trl", "unsloth"):
        assert install.PINS[peer][0] == install.TORCH
