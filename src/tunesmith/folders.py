"""Where tunesmith keeps things: the home folder.

Not here: what lies in it. Everything under it is made when it is first needed.
"""

from __future__ import annotations

import os
from pathlib import Path

from tunesmith.errors import InputError


def home() -> Path:
    """TUNESMITH_HOME, or ~/.tunesmith; made when missing."""
    folder = Path(os.environ.get("TUNESMITH_HOME") or Path.home() / ".tunesmith").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be used: {error.strerror}.", "Set TUNESMITH_HOME to a folder you can write."
        ) from error
    return folder
