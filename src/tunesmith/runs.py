"""A run directory: recipe.json, status.json, events.jsonl, metrics.jsonl, ledger.jsonl, checkpoints/, adapter/ or
model/.

Not here: training, or what a checkpoint holds (train.checkpoint). The directory is the truth about a run; a status is
only ever "finished" after the checks that prove it, and files are replaced whole or appended line by line.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith import store
from tunesmith.errors import InputError, RunError
from tunesmith.folders import home

STATES = ("new", "running", "interrupted", "proving", "finished", "failed")
# What a run killed in `create_run` leaves behind.
_BEGUN = {
    "recipe.json",
    ".recipe.json.staged",
    "status.json",
    ".status.json.staged",
    "events.jsonl",
    ".run.json.staged",
}


@dataclass(frozen=True, slots=True)
class Run:
    """A handle on a run directory; every method reads or writes the files, nothing is held in memory."""

    directory: Path

    @property
    def id(self) -> str:
        return str(self.read_json("run.json")["id"])

    @property
    def adapter_dir(self) -> Path:
        return self.directory / "adapter"

    @property
    def model_dir(self) -> Path:
        """Where a full fine-tuning keeps its model; every other run has an adapter."""
        return self.directory / "model"

    @property
    def weights_dir(self) -> Path:
        """What was trained: the model or the adapter."""
        return self.model_dir if self.model_dir.is_dir() else self.adapter_dir

    @property
    def form_dir(self) -> Path:
        """The adapter's files beside its weights, there from the start of the training."""
        return self.directory / "form"

    @property
    def checkpoints_dir(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def recipe(self) -> dict[str, Any]:
        return self.read_json("recipe.json")

    @property
    def status(self) -> dict[str, Any]:
        return self.read_json("status.json")

    def set_status(self, state: str, **facts: Any) -> None:
        """Replace the status; facts of earlier states are kept unless named again."""
        if state not in STATES:
            raise ValueError(f"unknown run state {state}")
        old = self.status if (self.directory / "status.json").exists() else {}
        self.write_json("status.json", {**old, "state": state, "updated": now(), **facts})
        self.event(state, **facts)

    def event(self, name: str, **facts: Any) -> None:
        self._append("events.jsonl", {"time": now(), "event": name, **facts})

    def metric(self, **values: Any) -> None:
        """One line of live metrics: always with `step`, and what was measured at it."""
        self._append("metrics.jsonl", values)

    def example_losses(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """The loss of each example of a step, where the recipe asks for it. After a resume, the newest line counts."""
        for row in rows:
            self._append("example_losses.jsonl", {"step": step, **row})

    def metrics(self) -> list[dict[str, Any]]:
        """All metric lines; a last line torn by a crash is left out. After a resume, a step's newest line counts."""
        lines: dict[tuple[str, int], dict[str, Any]] = {}
        for row in self._lines("metrics.jsonl"):
            lines[(str(row.get("kind")), int(row["step"]))] = row
        return list(lines.values())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace a file whole: written beside it, synced, renamed."""
        path = self.directory / name
        staged = path.with_name(f".{name}.staged")
        with staged.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        with (self.directory / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def read_json(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"{self.directory} is no run directory: {name} is missing.", "`tunesmith runs` lists runs."
            ) from error
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}.") from error
        return dict(value)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.directory / name).open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line torn by a crash must not swallow this one
                    file.write(b"\n")
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / name
        rows = []
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # the line a crash tore
        return rows


def create_run(directory: Path | None, *, recipe: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Run:
    """Make a run directory (under the home folder when None) and put it on the list; `facts` go into run.json.

    run.json comes last: a directory without it was cut off here, and is begun again.
    Raises InputError when `directory` holds something that is not a run.
    """
    created = now()
    run_id = f"run-{created[:19].replace(':', '').replace('-', '').replace('T', '-')}-{secrets.token_hex(3)}"
    folder = directory or home() / "runs" / run_id
    if folder.exists() and not (folder.is_dir() and _BEGUN.issuperset(path.name for path in folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty.", "Choose another --out, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.", "Choose another --out.") from error
    run = Run(folder)
    run.write_json("recipe.json", recipe)
    run.set_status("new")
    store.record_run(run_id, folder, created=created, base=str(recipe["base"]))
    run.write_json("run.json", {"id": run_id, "created": created, **(facts or {})})
    return run


def is_run(directory: Path) -> bool:
    return (directory / "run.json").is_file() and (directory / "recipe.json").is_file()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
