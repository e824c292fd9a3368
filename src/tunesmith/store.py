"""Where tunesmith keeps things: the home folder, and a database of runs, aliases and what was decided about them.

Not here: the things themselves. A run directory or an adapter is the truth; the list of runs can be thrown away, the
history of aliases is kept here alone. SQLite by default, any SQLAlchemy URL in TUNESMITH_DATABASE.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError, ModelError, RunError, did_you_mean
from tunesmith.facts import weights_sha256

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, MetaData

ALIAS = re.compile(r"[A-Za-z0-9][\w.-]*@[A-Za-z0-9][\w.-]*", re.ASCII)
WAIT_S = 30  # for another process that writes


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
    with _transaction() as (connection, tables):
        table = tables["run"]
        connection.execute(table.delete().where(table.c.id == run_id))
        connection.execute(
            table.insert().values(id=run_id, directory=str(directory.resolve()), created=created, base=base)
        )


def list_runs() -> list[dict[str, Any]]:
    """Newest first: id, directory, created, base. Directories that are gone are left out."""
    with _transaction() as (connection, tables):
        table = tables["run"]
        rows = connection.execute(table.select().order_by(table.c.created.desc())).mappings().all()
    return [dict(row) for row in rows if Path(row["directory"]).is_dir()]


# -- aliases -----------------------------------------------------------------------------------------------------


def record_decision(
    alias: str,
    action: str,
    *,
    folder: Path,
    sha256: str,
    evidence: Path,
    restores: int | None = None,
    after: int | None = None,
) -> int | None:
    """Keep what was decided about an alias. `action` "shipped" and "rolled back" move it to `folder`, whose weights
    have `sha256`, and give it its next version number; "refused" moves nothing and gives None.

    `restores` is the version that a rollback goes back to, `after` the one it was decided on. Raises InputError for
    what is no alias, RunError when the alias has moved on since.
    """
    from sqlalchemy import func, select
    from sqlalchemy.exc import IntegrityError

    check_alias(alias)
    values = {"alias": alias, "action": action, "folder": str(folder.resolve()), "sha256": sha256, "restores": restores}
    values |= {"created": datetime.now(UTC).isoformat(timespec="seconds"), "evidence": str(evidence)}
    moved = RunError(f"{alias} was moved by another process just now.", "Look at it, then decide again.")
    version = None
    try:
        with _transaction() as (connection, tables):
            table = tables["decision"]
            if action != "refused":
                newest = connection.execute(select(func.max(table.c.version)).where(table.c.alias == alias)).scalar()
                if after not in (None, newest):
                    raise moved
                version = (newest or 0) + 1
            connection.execute(table.insert().values(version=version, **values))
    except IntegrityError as error:  # only where a database lets two transactions read before one writes
        raise moved from error
    return version


def list_decisions(alias: str | None = None) -> list[dict[str, Any]]:
    """Newest first: alias, version (None: refused), action, restores, folder, sha256, created, evidence."""
    with _transaction() as (connection, tables):
        table = tables["decision"]
        wanted = table.select() if alias is None else table.select().where(table.c.alias == alias)
        rows = connection.execute(wanted.order_by(table.c.number.desc())).mappings().all()
    return [dict(row) for row in rows]


def list_aliases() -> list[dict[str, Any]]:
    """What each alias points at now, as `list_decisions` gives it, by name."""
    newest: dict[str, dict[str, Any]] = {}
    for row in list_decisions():
        if row["version"] is not None:
            newest.setdefault(row["alias"], row)
    return [newest[alias] for alias in sorted(newest)]


def check_alias(alias: str) -> None:
    if not ALIAS.fullmatch(alias):
        raise InputError(f"{alias!r} is no alias.", "Write NAME@STAGE, such as support@prod.")


def find_folder(name: str | Path) -> Path:
    """The folder that a model's name means: where an alias points, else the name itself as a path.

    Raises InputError for an alias that does not exist, or is a folder's name too; ModelError when the folder's weights
    are no longer those that were shipped.
    """
    path = Path(name).expanduser()
    if not ALIAS.fullmatch(str(name)):
        return path
    aliases = {row["alias"]: row for row in list_aliases()}
    if path.exists():
        if str(name) in aliases:
            raise InputError(f"{name} is an alias and a folder here.", f"Write ./{name} for the folder, or rename it.")
        return path
    if str(name) not in aliases:
        todo = did_you_mean(str(name), aliases, what="aliases") if aliases else "`tunesmith ship` makes one."
        raise InputError(f"There is no alias {name}, nor a folder of that name.", todo)
    return check_shipped(aliases[str(name)])


def check_shipped(decision: dict[str, Any]) -> Path:
    """The folder of a decision. Raises ModelError when the weights in it are not those that were decided about."""
    folder = Path(decision["folder"])
    what = f"{decision['alias']} version {decision['version']} is {folder}"
    todo = f"Put the folder back, or: tunesmith rollback {decision['alias']}"
    if not folder.is_dir():
        raise ModelError(f"{what}, which is gone.", todo)
    if (found := weights_sha256(folder)) != decision["sha256"]:
        was = decision["sha256"][:12]
        raise ModelError(f"{what} with weights {was}, and they are {found[:12]} now.", todo)
    return folder


# -- the database ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _transaction() -> Iterator[tuple[Connection, dict[str, Any]]]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    url = os.environ.get("TUNESMITH_DATABASE") or f"sqlite:///{home() / 'tunesmith.db'}"
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        _lock_from_the_start(engine)
    tables = _tables()
    try:
        with engine.begin() as connection:
            tables.create_all(connection)
            yield connection, dict(tables.tables)
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise InputError(
            f"The database {engine.url!r} cannot be used: {error}.", "Check TUNESMITH_DATABASE."
        ) from error
    finally:
        engine.dispose()


def _lock_from_the_start(engine: Engine) -> None:
    """SQLite's writers wait for each other only when a transaction says at its start that it will write: one that
    reads first and writes then fails at once, or writes on what it read too early."""
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver is not to begin transactions
        connection.execute(f"PRAGMA busy_timeout = {WAIT_S * 1000}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _tables() -> MetaData:
    from sqlalchemy import Column, Integer, MetaData, String, Table, UniqueConstraint

    tables = MetaData()
    Table(
        "run",
        tables,
        Column("id", String, primary_key=True),
        Column("directory", String, nullable=False),
        Column("created", String, nullable=False),
        Column("base", String, nullable=False),
    )
    texts = ("action", "folder", "sha256", "created", "evidence")
    Table(
        "decision",
        tables,
        Column("number", Integer, primary_key=True, autoincrement=True),
        Column("alias", String, nullable=False),
        Column("version", Integer),  # of the alias, from 1; none where it did not move
        Column("restores", Integer),  # the version that a rollback goes back to
        *(Column(name, String, nullable=False) for name in texts),
        UniqueConstraint("alias", "version"),
    )
    return tables
