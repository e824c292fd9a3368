"""Where tunesmith keeps things: the home folder, and a database that indexes runs and datasets.

Not here: the things themselves. A run directory or dataset folder is the truth; the database is a list of where they
are and can be thrown away. SQLite by default, any SQLAlchemy URL in TUNESMITH_DATABASE.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table


def home() -> Path:
    """TUNESMITH_HOME, or ~/.tunesmith; made when missing."""
    folder = Path(os.environ.get("TUNESMITH_HOME") or Path.home() / ".tunesmith").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be used: {error.strerror}.", "Set TUNESMITH_HOME to a folder you can write."
        ) from error
    return folder


def record_run(run_id: str, directory: Path, *, created: str, base: str) -> None:
    """Put a run on the list; the same id again replaces its entry."""
    with _transaction() as (connection, table):
        connection.execute(table.delete().where(table.c.id == run_id))
        connection.execute(
            table.insert().values(id=run_id, directory=str(directory.resolve()), created=created, base=base)
        )


def list_runs() -> list[dict[str, Any]]:
    """Newest first: id, directory, created, base. Directories that are gone are left out."""
    with _transaction() as (connection, table):
        rows = connection.execute(table.select().order_by(table.c.created.desc())).mappings().all()
    return [dict(row) for row in rows if Path(row["directory"]).is_dir()]


@contextlib.contextmanager
def _transaction() -> Iterator[tuple[Connection, Table]]:
    from sqlalchemy import Column, MetaData, String, Table, create_engine
    from sqlalchemy.exc import SQLAlchemyError

    url = os.environ.get("TUNESMITH_DATABASE") or f"sqlite:///{home() / 'tunesmith.db'}"
    tables = MetaData()
    runs = Table(
        "run",
        tables,
        Column("id", String, primary_key=True),
        Column("directory", String, nullable=False),
        Column("created", String, nullable=False),
        Column("base", String, nullable=False),
    )
    engine = create_engine(url)
    try:
        tables.create_all(engine)
        with engine.begin() as connection:
            yield connection, runs
    except SQLAlchemyError as error:
        raise InputError(
            f"The database {engine.url!r} cannot be used: {error}.", "Check TUNESMITH_DATABASE."
        ) from error
    finally:
        engine.dispose()
