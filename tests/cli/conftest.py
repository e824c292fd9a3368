"""The command line as a user meets it: `main` with arguments, its exit code, stdout and stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout as the one JSON document it must be."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@pytest.fixture
def tunesmith(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`tunesmith("check", path)`: the console script's own `main`, in this process."""

    def call(*arguments: object) -> Answer:
        from tunesmith.cli.main import main

        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Answer(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return call


@pytest.fixture
def proof_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real proof, in this process (see tests/train)."""
    from tunesmith.train import prove

    class Done:
        returncode = 0
        stderr = ""

    def run(command: list[str], **_: Any) -> Done:
        prove.main(command[3])
        return Done()

    monkeypatch.setattr(prove.subprocess, "run", run)


@pytest.fixture
def bad_file(tiny_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text(tiny_file.read_text() + '{"messages": []}\n{\n', encoding="utf-8")
    return path
