"""The state of a climb on disk: replaced whole, so that it is always one of before or after.

Not here: what is in it (ladder). Called by ladder's caller.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, RunError

NAME = "state.json"


class State:
    """`values`: plan, rungs and absent ones by name, spent_s.

    Raises InputError when the folder holds a climb of other inputs, RunError when the file is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, Any] = {"fingerprint": fingerprint, "rungs": {}, "absent": {}, "spent_s": 0.0}
        if not self.path.exists():
            return
        try:
            self.values = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(
                f"{self.path} is damaged: {error}.", "Remove the folder, or choose another --out."
            ) from error
        if self.values.get("fingerprint") != fingerprint:
            what = f"{folder} holds a decision on other files or with other options."
            raise InputError(what, "Choose another --out, or remove it.")

    def save(self) -> None:
        staged = self.path.with_name(f".{NAME}.staged")
        with staged.open("w", encoding="utf-8") as file:
            json.dump(self.values, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.path)
