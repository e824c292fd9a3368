"""What this machine has, each fact with its source: cores, memory, processor flags.

Not here: which precision is faster, which is measured (products.choose_dtype). Read by train, the report and the CLI.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, slots=True)
class Hardware:
    """`cores` is what this process may use: its affinity, bounded by the control group's quota."""

    processor: str
    cores: int
    cores_source: str
    memory_bytes: int
    flags: frozenset[str]

    def as_dict(self) -> dict[str, str]:
        vector = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in self.flags]
        return {
            "processor": self.processor,
            "cores": f"{self.cores} ({self.cores_source})",
            "memory": f"{self.memory_bytes / 2**30:.1f} GiB",
            "vector units": ", ".join(vector) or "not known",
            "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        }


def detect() -> Hardware:
    """Look at this machine. Never raises; a fact that cannot be had is 0 or 'unknown'."""
    cpuinfo = _read("/proc/cpuinfo")
    cores, source = _cores()
    return Hardware(
        processor=_field(cpuinfo, "model name") or platform.processor() or "unknown",
        cores=cores,
        cores_source=source,
        memory_bytes=_memory_bytes(),
        flags=frozenset(_field(cpuinfo, "flags").split()),
    )


def idle_cores(cores: int, *, watch_s: float = 0.3) -> int:
    """How many of the `cores` this process may use stand idle now, at least 1: looks for `watch_s`, doing nothing.

    A thread on a core that another process uses makes all others wait: two on a busy machine of two cores run several
    times slower than one. Where the system does not tell, all.
    """
    before = _busy_s()
    time.sleep(watch_s)
    after = _busy_s()
    others = sum(max(0.0, after[core] - before.get(core, 0.0)) for core in after) / watch_s
    return min(cores, max(1, round(len(after) - others))) if after else cores


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what comes next. Else it gives the pages of activations back to the system and
    takes them again, zeroed, every time: 2 to 3 % of a training step, 5 % of answering. Elsewhere nothing happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _busy_s() -> dict[int, float]:
    """Seconds that each core this process may use has worked since the machine started."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    busy = {}
    for line in _read("/proc/stat").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed:
            user, nice, system, _idle, _waits, *rest = map(int, fields[:8])
            busy[int(name[3:])] = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return busy


def _cores() -> tuple[int, str]:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        limit = max(1, int(quota) // int(period))
        if limit < affinity:
            return limit, "control group quota"
    return affinity, "processor affinity"


def _memory_bytes() -> int:
    total = 0
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() and total else total


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
