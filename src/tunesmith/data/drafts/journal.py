"""The replies of a teacher as they come, on disk: an interrupted `generate` or `augment` goes on without asking twice.

Not here: what is asked (asks), what becomes of a reply (make), which is computed again from the journal each time.
Called by data.drafts.make.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.contender import Reply
from tunesmith.errors import InputError


class Journal:
    """`PATH`: the plan on the first line, then one reply a line with the sha256 of what was asked."""

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        """Raises InputError when the file is the journal of another plan, or cannot be used."""
        self.path = path
        self._replies: dict[str, Reply] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and (whole := _whole_lines(path)):
                self._read(whole, plan)
            else:
                self._append({"plan": dict(plan)})
        except OSError as error:
            raise InputError(f"{path} cannot be used: {error.strerror or error}.", "Choose another --out.") from error

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, number: int, sha256: str) -> Reply | None:
        return self._replies.get(f"{number}/{sha256}")

    def put(self, number: int, sha256: str, *, reply: Reply) -> None:
        """On disk before it returns."""
        self._replies[f"{number}/{sha256}"] = reply
        self._append({"request": number, "prompt_sha256": sha256, "reply": asdict(reply)})

    def _read(self, lines: list[bytes], plan: Mapping[str, Any]) -> None:
        try:
            first, *rest = map(json.loads, lines)
            found = first["plan"]
            for line in rest:
                self._replies[f"{line['request']}/{line['prompt_sha256']}"] = Reply(**line["reply"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{self.path} is no journal of replies ({error!r}).", "Move it away.") from error
        different = [key for key in {**plan, **found} if plan.get(key) != found.get(key)]
        if different:
            what = f"{self.path} holds the replies of another command: {', '.join(sorted(different))} differ."
            raise InputError(what, "Give the same options to go on with it, or another --out to start anew.")

    def _append(self, value: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that were written to their end; half a line, left by a kill, is cut off."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return whole.splitlines()
