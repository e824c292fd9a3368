"""The database: transactions, and tables made when they are first needed. A table stands beside the code that reads it.

Not here: what rows mean (store, serve.records). SQLite with a rollback journal by default (with a write-ahead log,
versions below 3.51.3 can lose pages when several processes write), any SQLAlchemy URL in TUNESMITH_DATABASE.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tunesmith.errors import DatabaseError
from tunesmith.folders import home

METADATA = MetaData()
WAIT_S = 30  # for another process that writes


@contextlib.contextmanager
def transaction() -> Iterator[Connection]:
    """One transaction: all of it is kept, or, when the block raises, nothing.

    In SQLite it locks out every other writer from its start. Raises DatabaseError when the database cannot be used;
    IntegrityError passes, for the caller knows what was there already.
    """
    url = os.environ.get("TUNESMITH_DATABASE") or f"sqlite:///{home() / 'tunesmith.db'}"
    try:
        database = _database(url)
        with database.engine.begin() as connection:
            database.make_tables(connection)
            yield connection
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise DatabaseError(
            f"The database {make_url(url)!r} cannot be used: {error}.", "Check TUNESMITH_DATABASE."
        ) from error


@dataclass(frozen=True, slots=True)
class _Database:
    engine: Engine
    made: set[str]  # tables that this process has seen in it
    making: threading.Lock

    def make_tables(self, connection: Connection) -> None:
        """Those declared by now that are not there yet; all, where someone threw the database away."""
        if self.engine.dialect.name == "sqlite" and not connection.exec_driver_sql("PRAGMA schema_version").scalar():
            self.made.clear()
        if not METADATA.tables.keys() <= self.made:
            with self.making:
                METADATA.create_all(connection)
                self.made.update(METADATA.tables)


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
