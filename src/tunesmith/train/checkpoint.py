"""Checkpoints that are whole or absent: staged, synced, listed with their sha256, renamed; the newest valid one loads.

Not here: when to save (loop). A checkpoint holds what a resumed run needs to end at the same bits: adapter, optimiser,
random state and the loop's counters. Read with safetensors, JSON and torch's weights-only loader, never by unpickling.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import RunError
from tunesmith.facts import file_sha256

FILES = ("adapter.safetensors", "state.pt", "progress.json")
MANIFEST = "manifest.json"  # the sha256 of each of FILES


@dataclass(slots=True)
class Progress:
    """The loop's counters. `best_loss`: the lowest validation loss, at `best_step`; `stale`: validations since."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    tokens_trained: int = 0
    tokens_computed: int = 0
    seconds: float = 0.0


def save(folder: Path, model: Any, *, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """Write `step-N` in `folder`. RunError with the bytes needed when the disk is full; older ones stay whole."""
    final = folder / f"step-{progress.step:06d}"
    staged = folder / f".staged-{progress.step:06d}"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
        save_file(trainable(model), staged / "adapter.safetensors")
        torch.save({"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, staged / "state.pt")
        (staged / "progress.json").write_text(json.dumps(asdict(progress)))
        hashes = {path.name: file_sha256(path) for path in sorted(staged.iterdir())}
        (staged / MANIFEST).write_text(json.dumps(hashes, indent=2))
        for path in [*staged.iterdir(), staged]:
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        staged.replace(final)
        _sync(folder)
    except OSError as error:
        size_mb = sum(tensor.nbytes for tensor in trainable(model).values()) * 3 / 1e6
        todo = f"Free at least {size_mb:.0f} MB and start the same command again."
        raise RunError(f"The checkpoint {final} cannot be written: {error.strerror or error}.", todo) from error
    return final


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose manifest verifies. Damaged ones are moved to `quarantine/`, never deleted."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if _is_whole(path):
            return path
        quarantine = folder / "quarantine"
        quarantine.mkdir(exist_ok=True)
        path.replace(quarantine / f"{path.name}-{len(list(quarantine.iterdir()))}")
    return None


def restore(path: Path, model: Any, *, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint back into the model, the optimiser and torch's generator."""
    restore_adapter(path, model)
    state = torch.load(path / "state.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return Progress(**json.loads((path / "progress.json").read_text()))


def restore_adapter(path: Path, model: Any) -> None:
    """Put the checkpoint's adapter into the model. Raises RunError when it is missing or damaged."""
    if not _is_whole(path):
        raise RunError(f"The checkpoint {path} is missing or damaged.", "Choose another --out to train again.")
    saved = load_file(path / "adapter.safetensors")
    with torch.no_grad():
        for name, tensor in trainable(model).items():
            tensor.copy_(saved[name])


def prune(folder: Path, *, best_step: int) -> None:
    """Keep the newest two, so that one may break, and the best; only called once the newest is written."""
    paths = sorted(folder.glob("step-*"))
    for path in paths[:-2]:
        if path.name != f"step-{best_step:06d}":
            shutil.rmtree(path)


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}


def _is_whole(path: Path) -> bool:
    try:
        hashes = json.loads((path / MANIFEST).read_text())
        whole = set(hashes) == set(FILES)
        return whole and all(file_sha256(path / name) == sha256 for name, sha256 in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
