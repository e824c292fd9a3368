"""Run a function of a test in an interpreter of its own: for what forks.

A fork copies the locks of a process as they are held at that moment, also those of threads that it does not copy, so
a child of a process with threads may wait for ever. The processes of pytest-xdist have threads; a fresh one has none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_alone(function: Callable[..., None], *arguments: object, timeout_s: float = 150) -> None:
    """Call a module-level function with these arguments as text; fail with its traceback, or when it takes longer."""
    module, name = function.__module__, function.__qualname__
    code = f"import sys; from {module} import {name}; {name}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
