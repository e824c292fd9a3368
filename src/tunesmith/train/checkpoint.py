"""Checkpoints that are whole or absent: staged, synced, listed with their sha256, renamed; the newest valid one loads.

Not here: when to save (loop). A checkpoint holds what a resumed run needs to end at the same bits: adapter, optimiser,
random state and the loop's counters. Read with safetensors, JSON and torch's weights-only loader, never by unpickling.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.errors import RunError
from tunesmith.facts import file_sha256
from tunesmith.folders import sync

FILES = ("adapter.safetensors", "state.pt", "progress.json")
MANIFEST = "manifest.json"  # the sha256 of each of FILES
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class Progress:
    """The loop's counters. `best_loss`: the lowest validation loss, at `best_step`; `stale`: validations since."""

    step: int = 0
    validated_step: int = -1  # -1: not once yet
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    tokens_trained: int = 0
    tokens_computed: int = 0
    seconds: float = 0.0
    micro_batch_tokens: int | None = None  # in place of the setting, once memory ran out


def save(folder: Path, model: Any, *, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """Write `step-N` in `folder`; the checkpoints that are there stay whole whatever happens.

    Raises RunError when a weight is not finite, or with the bytes needed when the disk is full.
    """
    adapter = trainable(model)
    if bad := [name for name, tensor in adapter.items() if not torch.isfinite(tensor).all()]:
        what = f"At step {progress.step} the weight {bad[0]} is not finite; no checkpoint of it was written."
        raise RunError(what, "Try a lower learning_rate.")
    final = folder / f"step-{progress.step:06d}"
    staged = folder / f".staged-{final.name}"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        save_file(adapter, staged / "adapter.safetensors")
        with (staged / "state.pt").open("wb") as file:
            torch.save({"optimizer": optimizer.state_dict(), "random": random_state()}, file)
        (staged / "progress.json").write_text(json.dumps(asdict(progress)))
        hashes = {name: file_sha256(staged / name) for name in FILES}
        (staged / MANIFEST).write_text(json.dumps(hashes, indent=2))
        sync_folder(staged)
        _remove(final)
        staged.replace(final)
        for parent in (folder, folder.parent):
            sync(parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not (number := _errno(error)):
            raise
        shutil.rmtree(staged, ignore_errors=True)
        size_mb = sum(tensor.nbytes for tensor in adapter.values()) * 3 / 1e6  # with AdamW's two moments
        todo = f"Free {max(size_mb, 0.1):.1f} MB there" if number in FULL else f"Make {folder} writable"
        what = f"The checkpoint {final} cannot be written: {os.strerror(number)}."
        raise RunError(what, f"{todo} and start the same command again.") from error
    return final


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose manifest verifies. Damaged ones are moved to `quarantine/`, never deleted.

    Clears what a kill left half-written or half-removed. RunError when a checkpoint may not be read.
    """
    for leftover in folder.glob(".*-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in reversed(_by_step(folder)):
        if _is_whole(path):
            return path
        quarantine = folder / "quarantine"
        quarantine.mkdir(exist_ok=True)
        path.replace(quarantine / f"{path.name}-{len(list(quarantine.iterdir()))}")
    return None


def restore(path: Path, model: Any, *, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint back into the model, the optimiser and torch's generators."""
    restore_adapter(path, model)
    state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    try:
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**json.loads((path / "progress.json").read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise _misfit(path) from error
    set_random_state(state["random"])
    return progress


def restore_adapter(path: Path, model: Any) -> None:
    """Put the checkpoint's adapter into the model. Raises RunError when it is missing, damaged or of another model."""
    if not _is_whole(path):
        raise RunError(f"The checkpoint {path} is missing or damaged.", "Choose another --out to train again.")
    saved, wanted = load_file(path / "adapter.safetensors"), trainable(model)
    if {name: x.shape for name, x in saved.items()} != {name: x.shape for name, x in wanted.items()}:
        raise _misfit(path)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def prune(folder: Path, *, best_step: int, steps_per_epoch: int = 1, kept_epochs: int = 0) -> None:
    """Keep the newest two, so that one may break, the best, and those of the last `kept_epochs` ends of epochs; only
    called once the newest is written."""
    paths = _by_step(folder)
    ends = [path for path in paths if _step(path) and _step(path) % steps_per_epoch == 0]
    kept = {*paths[-2:], *ends[max(0, len(ends) - kept_epochs) :]}
    for path in paths:
        if path not in kept and _step(path) != best_step:
            _remove(path)


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}


def random_state() -> dict[str, Any]:
    """The state of torch's generators, which dropout draws from: the CPU's, and each accelerator's in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def sync_folder(folder: Path) -> None:
    """Have the files of a folder, and the folder itself, on the disk before anything refers to them."""
    for path in [*folder.iterdir(), folder]:
        sync(path)


def _by_step(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _is_whole(path: Path) -> bool:
    try:
        hashes = json.loads((path / MANIFEST).read_text())
        whole = set(hashes) == set(FILES)
        return whole and all(file_sha256(path / name) == sha256 for name, sha256 in hashes.items())
    except PermissionError as error:
        raise RunError(f"You may not read the checkpoint {path}.", "Change its permissions or its owner.") from error
    except (OSError, ValueError, AttributeError):
        return False


def _errno(error: Exception) -> int | None:
    """The system's error number; torch and safetensors put errors of their own over it."""
    for cause in (error, error.__context__):
        if isinstance(cause, OSError):
            return cause.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _misfit(path: Path) -> RunError:
    what = f"The checkpoint {path} does not fit this run: another version of tunesmith or PEFT wrote it."
    return RunError(what, "Install that version again, or choose another --out to train anew.")


def _remove(path: Path) -> None:
    """Take a checkpoint off the list in one step, then delete it: a kill in between leaves no half of one."""
    if path.exists():
        aside = path.with_name(f".removed-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(path.replace(aside))
