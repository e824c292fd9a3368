"""Checkpoints are whole or absent; a damaged one goes to quarantine and the older one is used."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.alone import run_alone
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


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flipped bit", "truncated", "missing"])
@pytest.mark.parametrize("name", ["adapter.safetensors", "state.pt", "progress.json", "manifest.json"])
def test_a_damaged_newest_goes_to_quarantine_and_the_older_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    older, newest = save(tmp_path, 4), save(tmp_path, 8)
    assert checkpoint.newest(tmp_path) == newest
    damage(newest / name)
    assert checkpoint.newest(tmp_path) == older
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["step-000008-0"]
    assert not newest.exists()


def test_without_a_whole_one_there_is_none_and_all_are_kept(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (1, 2):
        (save(tmp_path, step) / "state.pt").unlink()
    assert checkpoint.newest(tmp_path) is None
    assert len(list((tmp_path / "quarantine").iterdir())) == 2


def test_what_a_kill_left_behind_is_not_seen_and_is_cleared(tmp_path: Path) -> None:
    whole = save(tmp_path, 1)
    for name in (".staged-step-000002", ".removed-step-000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == whole
    assert list(tmp_path.iterdir()) == [whole]


def test_a_checkpoint_of_the_same_step_is_replaced_and_pruning_keeps_the_best_and_the_newest_two(
    tmp_path: Path,
) -> None:
    for step in (1, 2, 3, 4, 4):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, best_step=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003", "step-000004"]


@pytest.mark.parametrize(
    ("epochs", "kept"), [(0, [4, 9, 10]), (1, [4, 9, 10]), (2, [4, 8, 9, 10]), (9, [2, 4, 6, 8, 9, 10])]
)
def test_the_ends_of_the_last_epochs_are_kept_where_it_is_asked(tmp_path: Path, epochs: int, kept: list[int]) -> None:
    for step in range(11):
        (tmp_path / f"step-{step:06d}").mkdir()
    checkpoint.prune(tmp_path, best_step=4, steps_per_epoch=2, kept_epochs=epochs)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == kept


def test_the_newest_is_the_one_of_the_highest_step_beyond_six_digits_too(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        shutil.copytree(save(tmp_path / "made", 1), tmp_path / f"step-{step:06d}")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-1000000"


def test_a_best_checkpoint_that_is_damaged_is_not_used_silently(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    flip(path / "adapter.safetensors")
    with pytest.raises(RunError, match="missing or damaged"):
        checkpoint.restore_adapter(path, trained(1)[0])


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    other = torch.nn.Linear(5, 3)
    before = other.weight.clone()
    with pytest.raises(RunError, match="does not fit this run"):
        checkpoint.restore(path, other, optimizer=torch.optim.AdamW(other.parameters()))
    assert torch.equal(other.weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, value: float) -> None:
    model, optimizer = trained(1)
    with torch.no_grad():
        model.bias[1] = value
    with pytest.raises(RunError, match=r"At step 7 the weight bias is not finite.*lower learning_rate"):
        checkpoint.save(tmp_path, model, optimizer=optimizer, progress=Progress(step=7))
    assert not list(tmp_path.iterdir())


# -- a disk that refuses ----------------------------------------------------------------------------------------


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Files of this process may only grow to so many bytes: what a full disk or a quota does, without one. Not beyond
    the test, or pytest could not write its report to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def sized(num_weights: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(num_weights, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, num_weights)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("limit", [100, 40_000, 85_000], ids=["at once", "in the adapter", "in the optimiser's state"])
def test_a_full_disk_is_said_with_the_bytes_and_leaves_the_older_checkpoint_and_nothing_else(
    tmp_path: Path, limit: int
) -> None:
    model, optimizer = sized(20_000)  # 80 kB, and twice as much of state
    whole = checkpoint.save(tmp_path, model, optimizer=optimizer, progress=Progress(step=1))
    with (
        small_files(limit),
        pytest.raises(RunError, match=r"step-000002 cannot be written: File too large\. Free 0\.2 MB there and start"),
    ):
        checkpoint.save(tmp_path, model, optimizer=optimizer, progress=Progress(step=2))
    assert list(tmp_path.iterdir()) == [whole]
    assert checkpoint.newest(tmp_path) == whole


def test_a_really_full_file_system_does_the_same(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system takes a privilege that this process does not have")
    try:
        model, optimizer = sized(20_000)
        whole = checkpoint.save(tmp_path, model, optimizer=optimizer, progress=Progress(step=1))
        with pytest.raises(RunError, match=os.strerror(errno.ENOSPC)):
            checkpoint.save(tmp_path, model, optimizer=optimizer, progress=Progress(step=2))
        assert list(tmp_path.iterdir()) == [whole]
        assert checkpoint.newest(tmp_path) == whole
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_place_that_is_no_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: Not a directory\. Make .*file writable"):
        save(tmp_path / "file", 1)


@pytest.mark.slow
def test_a_folder_without_permission_says_so_and_takes_nothing_for_damaged() -> None:
    parent = Path(tempfile.mkdtemp())  # not under tmp_path, which only its owner may enter
    parent.chmod(0o755)
    try:
        unwritable, unreadable = save(parent / "unwritable", 1), save(parent / "unreadable", 1)
        unwritable.parent.chmod(0o500)
        (unreadable / "manifest.json").chmod(0o000)
        run_alone(use_without_rights, parent)
        unwritable.parent.chmod(0o755)
        (unreadable / "manifest.json").chmod(0o644)
        assert checkpoint.newest(unwritable.parent) == unwritable
        assert checkpoint.newest(unreadable.parent) == unreadable
    finally:
        shutil.rmtree(parent)


def use_without_rights(parent: str) -> None:
    model, optimizer = trained(2)
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    with pytest.raises(RunError, match=r"Permission denied.* Make"):
        checkpoint.save(Path(parent, "unwritable"), model, optimizer=optimizer, progress=Progress(step=2))
    with pytest.raises(RunError, match="may not read the checkpoint"):
        checkpoint.newest(Path(parent, "unreadable"))


# -- killed while saving ----------------------------------------------------------------------------------------

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_file_events_of_a_save_and_a_prune_leaves_a_whole_checkpoint(tmp_path: Path, every: int) -> None:
    run_alone(kill_a_save_at_file_events, tmp_path, every)


def kill_a_save_at_file_events(tmp: str, every: str) -> None:
    """Children count what Python tells the system about files, and end themselves with SIGKILL at the nth."""
    tmp_path = Path(tmp)
    for step in (1, 2, 3):
        save(tmp_path / "before", step)
    killed = 0
    for moment in range(1, 200, int(every)):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(moment))
        child = os.fork()
        if child == 0:
            try:
                kill_myself_at(moment)
                save(folder, 3)  # again: the old one gives way
                save(folder, 4)
                checkpoint.prune(folder, best_step=2)
            finally:
                os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            break
        killed += 1
        newest = checkpoint.newest(folder)
        assert newest is not None
        assert newest.name in ("step-000002", "step-000003", "step-000004")
        assert not (folder / "quarantine").exists()
        assert all(path.name.startswith("step-") for path in folder.iterdir())
        shutil.rmtree(folder)
    assert killed * int(every) > 30


def kill_myself_at(moment: int) -> None:
    seen = iter(range(1, moment + 1))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in FILE_EVENTS and next(seen) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
