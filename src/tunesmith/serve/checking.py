"""Uploaded files looked at in a process of its own, with limits on memory and time; small ones in this process.

Not here: what is looked for (the surface passes that in), what a problem becomes on the wire (serve.intake). Called by
serve.intake. A file that takes too much to read ends that process, not the server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError, Problem, ServeError
from tunesmith.serve.intake import CheckUpload
from tunesmith.serve.wire.errors import RequestError

SMALL_BYTES = 1 << 20  # read in less time than a process takes to start
MEMORY_BYTES = 2 << 30  # of addresses: what the interpreter and its libraries map counts, too
START_S, BYTES_PER_S = 30.0, 5e6  # a tenth of the rate that files are read at
KEPT = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT", "VIRTUAL_ENV")  # of the environment: no secrets
OUT_OF_MEMORY_EXIT = 3
ENDED = (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGSEGV, OUT_OF_MEMORY_EXIT)


@dataclass(frozen=True, slots=True)
class Checking:
    """`command` reads {"path", "filename", "memory_bytes", "seconds"} from its input, limits itself to them, and writes
    {"problems", "total"}; `within` does the same in this process, raising DataError."""

    command: Sequence[str]
    within: CheckUpload
    small_bytes: int = SMALL_BYTES
    memory_bytes: int = MEMORY_BYTES
    start_s: float = START_S

    def __call__(self, path: Path, filename: str) -> None:
        """Raises DataError with the problems, RequestError (400) for a file that takes more than the limits."""
        size = path.stat().st_size
        if size <= self.small_bytes:
            self.within(path, filename)
            return
        seconds = self.start_s + size / BYTES_PER_S
        asked = {"path": str(path), "filename": filename, "memory_bytes": self.memory_bytes, "seconds": seconds}
        with tempfile.TemporaryFile() as answer:
            code = self._run(json.dumps(asked).encode(), answer.fileno(), seconds)
            answer.seek(0)
            text = answer.read()
        if code is None or code in ENDED:
            what = f"The file took more than {seconds:.0f} s or {self.memory_bytes >> 20} MB to check. Split it."
            raise RequestError(what, param="file", code="file_too_costly")
        if code:
            raise ServeError("The file could not be checked.", "Look at the server's log.", status=500)
        found = json.loads(text)
        if found["problems"]:
            raise DataError([Problem(**problem) for problem in found["problems"]], found["total"])

    def _run(self, asked: bytes, answer: int, seconds: float) -> int | None:
        """Its exit code; None when it was ended for its time."""
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=answer, env=environment)
        try:
            process.communicate(asked, timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            process.wait()
        return process.returncode
