"""A trainer without a model, in the form of the real one's command line and run directory, that starts in no time.

`python stub_trainer.py RECIPE --out RUN --json STEPS STEP_S MISHAP`. Each step's weight follows from the one before, a
checkpoint is written every second step, SIGTERM saves and exits 75; there are five epochs, or fewer of two steps. It
dies of `MISHAP`: "none", "crash" (at the third step of every life), "fail" (as a run that diverges), "full" (the disk),
"refuse" (its input).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

STOP: list[int] = []
CONFIG = b'{"base_model_name_or_path": "tiny"}'


def main(recipe: str, _out: str, run: str, _json: str, steps: str, step_s: str, mishap: str) -> None:
    if mishap == "refuse":
        print("error: No training row is left: all are too long.", file=sys.stderr)
        sys.exit(2)
    folder = Path(run)
    begin(folder, recipe, int(steps))
    alone = (folder / "lock").open("w")
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        (folder / "trained_twice").touch()
        sys.exit(2)
    signal.signal(signal.SIGTERM, note)
    status(folder, "running")
    train(folder, int(steps), float(step_s), mishap)
    (folder / "adapter").mkdir(exist_ok=True)
    write(folder / "adapter" / "adapter_config.json", CONFIG)
    weights(folder / "adapter" / "adapter_model.safetensors", "a.lora_A.weight", newest(folder)[1])
    status(folder, "finished")


def note(number: int, frame: FrameType | None) -> None:
    STOP.append(number)


def begin(folder: Path, recipe: str, steps: int) -> None:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "form").mkdir(exist_ok=True)
    write(folder / "form" / "adapter_config.json", CONFIG)
    settings = {"num_steps": steps, "epochs": max(1, min(5, steps // 2))}
    for name, value in (("recipe", {"from": recipe}), ("settings", settings), ("run", {"id": "run-x"})):
        if not (folder / f"{name}.json").exists():
            write(folder / f"{name}.json", json.dumps(value).encode())
    write(folder / "ledger.jsonl", b"")


def train(folder: Path, steps: int, step_s: float, mishap: str) -> None:
    step, weight = newest(folder)
    lived = 0
    while step < steps:
        if STOP:
            checkpoint(folder, step, weight)
            status(folder, "interrupted")
            sys.exit(75)
        time.sleep(step_s)
        step, lived = step + 1, lived + 1
        weight = hashlib.sha256(weight).digest()[:4]
        row = {"kind": "train", "step": step, "loss": 1 / step, "token_accuracy": 1 - 1 / step}
        metric(folder, {**row, "seconds": step_s, "tokens": 10})
        if step % 2 == 0:
            metric(folder, {"kind": "validation", "step": step, "loss": 2 / step, "token_accuracy": 0.5, "best": True})
            checkpoint(folder, step, weight)
        if mishap == "crash" and lived == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if mishap == "full" and lived == 3:
            reason = f"step-4 cannot be written: {os.strerror(errno.ENOSPC)}. Free 1 MB there."
            status(folder, "failed", reason=reason)
            sys.exit(1)
        if mishap == "fail" and lived == 3:
            status(folder, "failed", reason="The loss is above twice its recent median.")
            sys.exit(1)
    checkpoint(folder, steps, weight)


def newest(folder: Path) -> tuple[int, bytes]:
    done = sorted(folder.glob("checkpoints/step-*"))
    if not done:
        return 0, b"seed"
    return int(done[-1].name[5:]), (done[-1] / "adapter.safetensors").read_bytes()[-4:]


def checkpoint(folder: Path, step: int, weight: bytes) -> None:
    final = folder / "checkpoints" / f"step-{step:06d}"
    if final.exists() or step == 0:
        return
    staged = folder / "checkpoints" / ".staged"
    staged.mkdir(exist_ok=True)
    weights(staged / "adapter.safetensors", "a.lora_A.default.weight", weight)
    staged.replace(final)


def weights(path: Path, name: str, weight: bytes) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    write(path, struct.pack("<Q", len(header)) + header + weight)


def metric(folder: Path, row: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def status(folder: Path, state: str, **facts: str) -> None:
    write(folder / "status.json", json.dumps({"state": state, **facts}).encode())


def write(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.staged")
    staged.write_bytes(data)
    staged.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
