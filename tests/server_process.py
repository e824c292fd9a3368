"""`tunesmith server` as people start it: a process of its own, on a free port, in a folder with the base `tiny`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The process, in a session of its own, and its base URL; it writes to server.log."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "TUNESMITH_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tunesmith", "server", "--base", "tiny", "--port", "0", "--json"]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert process.stdout
    text = "".join(iter(process.stdout.readline, "}\n"))  # an object over several lines
    assert text, (folder / "server.log").read_text()
    return process, json.loads(text + "}")["url"]
