"""A grader that is the user's Python, in a process of its own with limits on time, memory, files and the network.

Not here: what happens in that process (graders.cell). Off unless an administrator allows it: the process runs as the
server's user, and only the kernel keeps it from files and the network (`apart` says what). Called by graders.grade.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tunesmith.serve.graders import cell

LIMIT_S = 120
AT_ONCE = 2
MAX_ANSWER_BYTES = 64 * 1024
LIMITS = {"AS": 2 * 2**30, "CPU": LIMIT_S, "FSIZE": 16 * 2**20, "NOFILE": 64, "CORE": 0}


class PythonFault(Exception):
    """The user's code failed: their traceback."""


class CellError(Exception):
    """The process did not end as it should; `kind` says how, in a word."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class PythonGraders:
    """Runs graders' code, at most AT_ONCE at a time."""

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self._free = threading.Semaphore(AT_ONCE)

    def check(self, source: str) -> None:
        """Raises PythonFault when it cannot be read, fails at its start, or has no `grade`."""
        self._run({"source": source, "sample": None, "item": None})

    def apart(self) -> dict[str, bool]:
        """Whether this machine's kernel keeps the code from the network, other files and other processes."""
        return dict(self._run({"source": "def grade(sample, item): return 0", "sample": None, "item": None})["apart"])

    def grade(self, source: str, *, sample: dict[str, Any], item: Any) -> float:
        """What `grade(sample, item)` returns. Raises PythonFault, and CellError when it was ended or gave nothing."""
        return float(self._run({"source": source, "sample": sample, "item": item})["score"])

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._free, tempfile.TemporaryDirectory(prefix="tunesmith-grader-") as folder:
            answer = _in_a_process(job | {"limits": LIMITS}, Path(folder), limit_s=self.limit_s)
        if "fault" in answer:
            raise PythonFault(answer["fault"])
        return answer


def _in_a_process(job: dict[str, Any], folder: Path, *, limit_s: float) -> dict[str, Any]:
    """Its answer goes into a file, whose size the process's limit on files bounds; a pipe would fill our memory."""
    environment = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "answer.json").open("w+b") as answer:
        process = subprocess.Popen(
            [sys.executable, "-I", cell.__file__],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(job).encode(), timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise CellError(f"The grader's code was ended after {limit_s:g} s.", "timeout") from error
        finally:
            _end(process)
        answer.seek(0)
        text = answer.read(MAX_ANSWER_BYTES)
    try:
        return dict(json.loads(text))
    except ValueError as error:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        raise CellError(f"The grader's process ended with {how} and no answer.", "crashed") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started in its group."""
    with contextlib.suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
