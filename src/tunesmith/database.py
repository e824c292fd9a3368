"""The database: transactions, and tables made when they are first needed. A table stands beside the code that reads it.

Not here: what rows mean (store, serve.records). SQLite with a rollback journal by default (with a write-ahead log,
versions below 3.51.3 can lose pages when several processes write), any SQLAlchemy URL in TUNESMITH_DATABASE.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tunesmith.errors import DatabaseError
from tunesmith.folders import home

METADATA = MetaData()
WAIT_S = 30  # for another process that writes
WAL_FAULT = ((3, 7, 0), (3, 51, 2))  # https://www.sqlite.org/wal.html#walresetbug
MAKING = 0x74756E65  # any number of our own: PostgreSQL's advisory lock while tables are made


@contextlib.contextmanager
def transaction() -> Iterator[Connection]:
    """One transaction: all of it is kept, or, when the block raises, nothing.

    In SQLite it locks out every other writer from its start. Raises DatabaseError when the database cannot be used;
    IntegrityError passes, for the caller knows what was there already.
    """
    url = os.environ.get("TUNESMITH_DATABASE") or f"sqlite:///{home() / 'tunesmith.db'}"
    try:
        database = _database(url)
        database.make_tables()
        with database.engine.begin() as connection:
            database.mend(connection)
            yield connection
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise DatabaseError(
            f"The database {make_url(url)!r} cannot be used: {error}.", "Check TUNESMITH_DATABASE."
        ) from error


def describe() -> str:
    """Which database it is, in which version, for people; with a warning where it may lose what is written."""
    with transaction() as connection:
        name, version = connection.dialect.name, [int(part) for part in connection.dialect.server_version_info or ()]
        journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar() if name == "sqlite" else ""
    number = ".".join(map(str, version))
    if name != "sqlite":
        return f"{'PostgreSQL' if name == 'postgresql' else name} {number}"
    return f"SQLite {number}, journal: {journal}{warning(version, str(journal))}"


def warning(version: Sequence[int], journal: str) -> str:
    """Why a version of SQLite should not write with this journal; empty where it may."""
    if journal != "wal" or not WAL_FAULT[0] <= tuple(version) <= WAL_FAULT[1]:
        return ""
    return (
        ". This version can lose pages of a write-ahead log when several processes write (mended in 3.51.3): stop them "
        "all and run: sqlite3 tunesmith.db 'PRAGMA journal_mode=DELETE'"
    )


@dataclass(frozen=True, slots=True)
class _Database:
    engine: Engine
    made: set[str]  # tables that this process has seen in it
    making: threading.Lock

    def make_tables(self) -> None:
        """Those declared by now that are not there yet, in a transaction of their own: one that fails later must not
        take them along, and no other may look for them before they are there."""
        if METADATA.tables.keys() <= self.made:
            return
        with self.making:
            if METADATA.tables.keys() <= self.made:
                return
            with self.engine.begin() as connection:
                if self.engine.dialect.name == "postgresql":  # where two processes may look before either has made
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MAKING})")
                METADATA.create_all(connection)
            self.made.update(METADATA.tables)

    def mend(self, connection: Connection) -> None:
        """All tables again, where someone threw SQLite's file away under us."""
        if self.engine.dialect.name == "sqlite" and not connection.exec_driver_sql("PRAGMA schema_version").scalar():
            METADATA.create_all(connection)


@functools.lru_cache(maxsize=8)
def _database(url: str) -> _Database:
    if url.startswith("sqlite"):
        engine = create_engine(url, poolclass=NullPool)
        _lock_from_the_start(engine)
    else:
        engine = create_engine(url, pool_pre_ping=True)
    return _Database(engine, set(), threading.Lock())


def _lock_from_the_start(engine: Engine) -> None:
    """SQLite's writers wait for each other only when a transaction says at its start that it will write: one that
    reads first and writes then fails at once, or writes on what it read too early."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver is not to begin transactions
        connection.execute(f"PRAGMA busy_timeout = {WAIT_S * 1000}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
