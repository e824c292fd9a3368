"""A PostgreSQL server for the tests that ask for one: of the package pgserver, or the system's own programs.

A test file that uses it imports `postgres_url`; where neither is there, its tests are skipped and say so.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="PostgreSQL is tested where the package psycopg is installed")
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        if find_spec("pgserver"):
            import pgserver

            server = pgserver.get_server(folder)
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
            server.cleanup()
        else:
            yield from _system_server(Path(folder))


def _system_server(folder: Path) -> Iterator[str]:
    """The programs of a system's package, listening on a socket in the folder alone."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    programs = next((place for place in places if (place / "initdb").is_file()), None)
    if programs is None and (found := shutil.which("initdb")):
        programs = Path(found).parent
    if programs is None:
        pytest.skip("PostgreSQL is tested where the package pgserver or a system's postgres is installed")
    data = folder / "data"
    subprocess.run([programs / "initdb", "-A", "trust", "-U", "test", "-D", data], check=True, capture_output=True)
    control = [programs / "pg_ctl", "-D", data, "-w"]
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], check=True, capture_output=True)
    try:
        yield f"postgresql+psycopg://test@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
