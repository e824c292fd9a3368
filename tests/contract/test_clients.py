"""OpenAI's real clients, three major versions, each in an environment of its own, through the whole life of a model.

Slow: makes the environments with pip and starts `tunesmith server` as a process. Without an index that pip can reach,
skipped. Set TUNESMITH_CLIENTS to a folder to keep the environments for the next time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_rows
from tests.server_process import start_server

VERSIONS = ("1.109.1", "2.54.0", "3.52.0")
LIFE = Path(__file__).with_name("life.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
# The parts of which the server must have each; the others are told, and fail only where they are there and wrong.
NEEDED = {"models", "chat", "stream", "errors", "embeddings", "graders", "evals", "paging", "stored"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A folder with the base under a short name, and a training file."""
    folder = tmp_path_factory.mktemp("contract")
    shutil.copytree(tiny_base, folder / "tiny")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(24)))
    return folder


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    process, url = start_server(home)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0, (home / "server.log").read_text()


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("TUNESMITH_CLIENTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("clients")


def client_python(folder: Path, version: str) -> Path:
    """The interpreter of an environment with this version of openai; skips where pip cannot get it."""
    python = folder / version / "bin" / "python"
    ready = folder / version / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / version], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"openai=={version}"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=900)
        if done.returncode:
            pytest.skip(f"pip cannot get openai {version}: {done.stderr.strip().splitlines()[-1:]}")
        ready.touch()
    return python


@pytest.mark.parametrize("version", VERSIONS)
def test_the_client_lives_a_whole_life(version: str, environments: Path, url: str, home: Path) -> None:
    python = client_python(environments, version)
    start = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_API_KEY")}
    done = subprocess.run(
        [python, LIFE, url, home / "train.jsonl", "tiny"], env=environment, capture_output=True, text=True, timeout=1500
    )
    told: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    for part in told:
        print(f"openai {version}: {part['part']:<12} {part['result']:<7} {part['detail'].splitlines()[0][:100]}")
    print(f"openai {version}: {time.monotonic() - start:.0f} s")
    assert done.returncode == 0, done.stderr
    results = {part["part"]: part["result"] for part in told}
    assert told[0]["detail"] == version
    wrong = [part for part in told if part["result"] == "fail"]
    assert not wrong, "\n".join(f"{part['part']}: {part['detail']}" for part in wrong)
    assert {name for name in NEEDED if results[name] != "pass"} == set()
