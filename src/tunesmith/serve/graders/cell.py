"""The process in which a grader's Python runs: `python -I cell.py`, a job as JSON on its standard input.

Not here: starting it and its time limit (graders.python). Nothing of tunesmith is imported: what runs here is a
stranger's code. It gives up what it can before it reads any: memory, the network, every file but Python's and its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on every processor
BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
EVERYTHING = 0x1FFF  # the 13 rights over files of Landlock's first version
SCOPES, SCOPES_SINCE = 3, 6  # abstract sockets and signals of other processes; from Landlock's sixth version on
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = 1, 2, 4, 8
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom")
SHOWN = 2_000  # characters of a failure


def main() -> None:
    """Read {source, sample, item, limits}; write {"score"}, {"fault"} or, without a sample to grade, {"apart"}: what
    the code was kept from."""
    job = json.load(sys.stdin)
    answer = os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)  # what the code prints is nobody's answer
    apart = _give_up(job["limits"])
    with os.fdopen(answer, "w") as file:
        json.dump(_run(job, apart), file)


def _give_up(limits: dict[str, int]) -> dict[str, bool]:
    """What the kernel keeps the code from, besides the limits, which hold everywhere."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        with contextlib.suppress(ValueError, OSError):  # already lower than that
            resource.setrlimit(kind, (value, value))
    system = ctypes.CDLL(None)
    readable = (sys.prefix, sys.base_prefix, *SYSTEM)
    apart = {"network": system.unshare(NEW_USER | NEW_NETWORK) == 0}
    version = system.syscall(CREATE_RULESET, None, 0, 1)
    files = version > 0 and _keep_only(system, readable, writable=(str(Path.cwd()), os.devnull), version=version)
    return apart | {"files": files, "processes": files and version >= SCOPES_SINCE}


def _keep_only(system: Any, readable: tuple[str, ...], *, writable: tuple[str, ...], version: int) -> bool:
    """Landlock (Linux 5.13): from here on this process opens these paths and no others, and signals only its own."""
    handled = struct.pack("=QQQ", EVERYTHING, 0, SCOPES) if version >= SCOPES_SINCE else struct.pack("=Q", EVERYTHING)
    rules = system.syscall(CREATE_RULESET, handled, len(handled), 0)
    for path in (*readable, *writable):
        _allow(system, rules, path, rights=EVERYTHING if path in writable else EXECUTE | READ_FILE | READ_FOLDER)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return bool(system.syscall(RESTRICT_SELF, rules, 0) == 0)


def _allow(system: Any, rules: int, path: str, *, rights: int) -> None:
    if not Path(path).exists():
        return
    if not Path(path).is_dir():  # the other rights are over folders, and refused for a file
        rights &= EXECUTE | WRITE_FILE | READ_FILE
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, opened)  # struct landlock_path_beneath_attr, packed
    system.syscall(ADD_RULE, rules, BENEATH, rule, 0)
    os.close(opened)


def _run(job: dict[str, Any], apart: dict[str, bool]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "grader"}
    try:
        exec(compile(job["source"], "grader.py", "exec"), names)
        if not callable(names.get("grade")):
            return {"fault": "The source defines no function grade(sample, item)."}
        if job["sample"] is None:
            return {"apart": apart}
        score = float(names["grade"](job["sample"], job["item"]))
    except BaseException as error:
        own = error.__traceback__.tb_next if error.__traceback__ else None
        lines = traceback.format_exception(type(error), error, own)
        return {"fault": "".join(lines)[-SHOWN:]}
    if not math.isfinite(score):
        return {"fault": f"grade returned {score}, which is no finite number."}
    return {"score": score}


if __name__ == "__main__":
    main()
