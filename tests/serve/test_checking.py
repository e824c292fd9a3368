"""Large uploads are checked in a process of their own: the same problems, and an end where it takes too much."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tunesmith.data.jsonl import check_jsonl
from tunesmith.errors import DataError, ServeError
from tunesmith.serve.checking import OUT_OF_MEMORY_EXIT, Checking
from tunesmith.serve.wire.errors import RequestError

COMMAND = [sys.executable, "-m", "tunesmith.data.jsonl"]
FILES = {
    "good": b'{"a": 1}\n' * 50,
    "broken": b'{"a": 1}\n{"a": \n[1]\n' * 30,
    "empty": b"",
    "array": b"[1, 2]",
    "surrogate": b'{"a": "\\ud800"}\n',
}


def problems(check: object, path: Path) -> tuple[object, ...]:
    try:
        check(path, "rows \u00e4.jsonl")  # type: ignore[operator]
    except DataError as error:
        return error.problems, error.total, str(error)
    return ()


@pytest.mark.parametrize("name", ["broken", *(pytest.param(name, marks=pytest.mark.slow) for name in FILES)])
def test_a_process_finds_what_a_thread_does(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[name])
    assert problems(Checking(COMMAND, check_jsonl, small_bytes=-1), path) == problems(check_jsonl, path)


def test_a_small_file_starts_no_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES["broken"])
    assert problems(Checking(["/no/such/program"], check_jsonl), path) == problems(check_jsonl, path)


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        f"import sys; sys.exit({OUT_OF_MEMORY_EXIT})",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_a_file_that_takes_too_much_is_refused(code: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES["good"])
    checking = Checking([sys.executable, "-S", "-c", code], check_jsonl, small_bytes=-1, start_s=0.5)
    with pytest.raises(RequestError, match="Split it") as caught:
        checking(path, "x")
    assert caught.value.status == 400 and caught.value.param == "file"


def test_a_process_that_fails_otherwise_is_our_fault(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES["good"])
    with pytest.raises(ServeError, match="could not be checked"):
        Checking([sys.executable, "-S", "-c", "raise KeyError"], check_jsonl, small_bytes=-1)(path, "x")


def test_the_limits_are_the_processs_own(tmp_path: Path) -> None:
    """It cannot even begin in 64 MB of addresses, or it ends by its own count of them."""
    path = tmp_path / "file"
    path.write_bytes(json.dumps({"a": "x" * (3 << 20)}).encode())
    with pytest.raises(RequestError, match="64 MB"):
        Checking(COMMAND, check_jsonl, small_bytes=-1, memory_bytes=64 << 20)(path, "x")
