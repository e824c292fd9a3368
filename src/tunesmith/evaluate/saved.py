"""The replies of an earlier evaluation, as a contender: nothing is generated again.

Not here: who wrote them (run.Evaluation.write_replies). Called by cli.blind.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.chat import Example, Message
from tunesmith.contender import Progress, Reply
from tunesmith.errors import InputError, RunError

PREFIX = "replies:"


class SavedReplies:
    """`replies:FILE#NAME`: what a contender of an earlier evaluation replied, from the replies.jsonl it wrote."""

    def __init__(self, spec: str, examples: Sequence[Example]) -> None:
        """Raises InputError when the file holds no reply of that contender to one of the examples."""
        self.name = spec
        path, mark, self.contender = spec.removeprefix(PREFIX).partition("#")
        if not mark:
            raise InputError(f"The contender {spec!r} cannot be read.", "Write it as replies:FILE#CONTENDER.")
        self.path = Path(path)
        found = self._read()
        if missing := [example for example in examples if example.id not in found]:
            what = f"{path} has no reply of {self.contender} to {len(missing)} of {len(examples)} prompts."
            raise InputError(what, "Evaluate on the same file, or lower --limit.")
        self.texts = [found[example.id] for example in examples]

    def _read(self) -> dict[str, str]:
        names = set()
        found: dict[str, str] = {}
        try:
            for line in self.path.read_text(encoding="utf-8").split("\n"):
                row = json.loads(line) if line else {}
                names.add(row.get("contender"))
                if row.get("contender") == self.contender:
                    found[row["example"]] = row["reply"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            todo = "`tunesmith evaluate --out DIR` writes one."
            raise InputError(f"{self.path} is no readable replies.jsonl: {error!r}.", todo) from error
        if not found:
            others = ", ".join(sorted(filter(None, names)))
            raise InputError(f"{self.path} has no contender {self.contender}.", f"It has {others}.")
        return found

    @property
    def weights(self) -> dict[str, str]:
        """What the report beside the replies says of the weights that gave them."""
        report = self.path.with_name("report.json")
        known = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
        return dict((known.get("weights") or {}).get(self.contender) or {})

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        if len(prompts) != len(self.texts):
            raise RunError(f"{self.name} holds {len(self.texts)} replies, not {len(prompts)}.")
        if progress:
            progress(len(prompts))
        return [Reply(text, 0, 0, 0.0, "stop") for text in self.texts]
