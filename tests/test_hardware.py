"""What the machine has, and how much of it is free."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunesmith import hardware


def test_this_machine_has_cores_and_memory() -> None:
    machine = hardware.detect()
    assert machine.cores >= 1
    assert machine.cores_source
    assert all(machine.as_dict().values())


def test_busy_cores_are_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([{0: 5.0, 1: 5.0, 2: 5.0}, {0: 5.3, 1: 5.01, 2: 5.28}])
    monkeypatch.setattr(hardware, "_busy_s", lambda: next(readings))
    assert hardware.idle_cores(3) == 1


@pytest.mark.parametrize(("grown", "idle"), [(0.0, 4), (0.3, 1), (0.09, 3)])
def test_there_is_always_one_core(grown: float, idle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([dict.fromkeys(range(4), 1.0), dict.fromkeys(range(4), 1.0 + grown)])
    monkeypatch.setattr(hardware, "_busy_s", lambda: next(readings))
    assert hardware.idle_cores(4) == idle


def test_a_system_that_does_not_tell_gives_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_busy_s", dict)
    assert hardware.idle_cores(4, watch_s=0.01) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_work_shows_in_the_busy_seconds() -> None:
    before = sum(hardware._busy_s().values())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert sum(hardware._busy_s().values()) - before >= 0.2
