"""Checkpoints are whole or absent; a damaged one goes to quarantine and the older one is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tunesmith.errors import RunError
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Progress


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(steps)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, step: int) -> Path:
    model, optimizer = trained(step)
    return checkpoint.save(folder, model, optimizer=optimizer, progress=Progress(step=step, best_loss=1.5))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_restored_checkpoint_is_the_saved_state_random_numbers_included(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    path = checkpoint.save(tmp_path, model, optimizer=optimizer, progress=Progress(step=3, best_loss=0.5, stale=2))
    expected = torch.rand(4)
    other, other_optimizer = trained(1)
    progress = checkpoint.restore(path, other, optimizer=other_optimizer)
    assert torch.equal(torch.rand(4), expected)
    assert progress == Progress(step=3, best_loss=0.5, stale=2)
    assert torch.equal(other.weight, model.weight)
    a, b = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in a[i])


@pytest.mark.parametrize("name", ["adapter.safetensors", "state.pt", "progress.json", "manifest.json"])
def test_a_damaged_newest_goes_to_quarantine_and_the_older_is_used(tmp_path: Path, name: str) -> None:
    older, newest = save(tmp_path, 4), save(tmp_path, 8)
    assert checkpoint.newest(tmp_path) == newest
    flip(newest / name)
    assert checkpoint.newest(tmp_path) == older
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["step-000008-0"]
    assert not newest.exists()


def test_without_a_whole_one_there_is_none_and_all_are_kept(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (1, 2):
        (save(tmp_path, step) / "state.pt").unlink()
    assert checkpoint.newest(tmp_path) is None
    assert len(list((tmp_path / "quarantine").iterdir())) == 2


def test_a_save_cut_off_by_a_kill_is_not_seen_and_the_next_one_takes_its_place(tmp_path: Path) -> None:
    whole = save(tmp_path, 1)
    staged = tmp_path / ".staged-000002"
    staged.mkdir()
    (staged / "adapter.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == whole
    assert checkpoint.newest(tmp_path) != save(tmp_path, 2) == checkpoint.newest(tmp_path)


def test_a_checkpoint_of_the_same_step_is_replaced_and_pruning_keeps_the_best_and_the_newest_two(
    tmp_path: Path,
) -> None:
    for step in (1, 2, 3, 4, 4):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, best_step=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003", "step-000004"]


def test_a_checkpoint_that_cannot_be_written_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: .* Free at least"):
        save(tmp_path / "file", 1)


def test_a_best_checkpoint_that_is_damaged_is_not_used_silently(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    flip(path / "adapter.safetensors")
    with pytest.raises(RunError, match="missing or damaged"):
        checkpoint.restore_adapter(path, trained(1)[0])
