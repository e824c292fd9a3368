"""Where the files that a config names are on this machine.

Not here: reading them (data.read.source).
Called by the translators; `given` is what the user said with --data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Relative paths are looked for beside the config, then in the working directory."""

    folder: Path
    given: Mapping[str, Path] = field(default_factory=dict)

    def find(self, name: str, *, inside: str | None = None) -> Path | None:
        """The file or folder `name` (in it, the file `inside`), or None when it is not here."""
        if name in self.given:
            return self.given[name]
        for start in (self.folder, Path()):
            for path in (start / name / inside, start / inside) if inside else (start / name,):
                if path.exists():
                    return path
        return None
