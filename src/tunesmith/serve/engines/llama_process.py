"""A running llama.cpp server with a fixed list of adapters: its address, its key, its end.

Not here: what runs in it (llama_child), requests (llamacpp). Adapters cannot be added to one that runs; another is
started beside it, and this one ends with the last request that uses it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import InputError, ModelError

INSTALL = "pip install 'tunesmith[llamacpp]'"
START_S = 300.0  # to read the weights
STOP_S = 10.0
TODO = "Use --engine torch."


class LlamaProcess:
    """`room` is the number of tokens of all its requests together, `slots` how many there may be at once; `exact`
    rounds nothing that it need not. Raises InputError without llama.cpp, ModelError when it does not come up."""

    def __init__(self, model: Path, adapters: Sequence[Path], *, room: int, slots: int, exact: bool = True) -> None:
        if not is_installed():
            raise InputError("The engine llamacpp needs the package xllamacpp.", f"Install it: {INSTALL}")
        self.key = secrets.token_urlsafe(32)
        settings = {
            "model": str(model),
            "adapters": [str(file) for file in adapters],
            "key": self.key,
            "room": room,
            "slots": slots,
            "exact": exact,
            "threads": len(os.sched_getaffinity(0)),
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        command = [sys.executable, "-m", "tunesmith.serve.engines.llama_child"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the server, which lets requests end
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        self.url = self._told(settings)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def used(self) -> Iterator[LlamaProcess]:
        """While open it does not end, unless it fails."""
        with self._lock:
            self._users += 1
        try:
            yield self
        finally:
            with self._lock:
                self._users -= 1
            self._end_if_done()

    def retire(self) -> None:
        """End it with the last request that uses it."""
        self._retired = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        with self._lock:
            done = self._retired and not self._users
        if done:
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()

    def _told(self, settings: dict[str, object]) -> str:
        assert self._process.stdin and self._process.stdout
        watch = threading.Timer(START_S, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps(settings) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
            self._end()
            raise ModelError(f"llama.cpp does not take {settings['model']}: {' '.join(said) or 'no reason'}.", TODO)
        return str(json.loads(line)["url"])


def is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None
