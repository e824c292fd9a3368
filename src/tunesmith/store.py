"""What the database knows of models: the list of runs, and aliases with what was decided about them.

Not here: the things themselves, connections (database). A run directory or an adapter is the truth; the list of runs
can be thrown away, the history of aliases is kept here alone.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, String, Table, UniqueConstraint, func, select
from sqlalchemy.exc import IntegrityError

from tunesmith.database import METADATA, transaction
from tunesmith.errors import InputError, ModelError, RunError, did_you_mean
from tunesmith.facts import weights_sha256

ALIAS = re.compile(r"[A-Za-z0-9][\w.-]*@[A-Za-z0-9][\w.-]*", re.ASCII)

RUNS = Table(
    "run",
    METADATA,
    Column("id", String, primary_key=True),
    Column("directory", String, nullable=False),
    Column("created", String, nullable=False),
    Column("base", String, nullable=False),
)
DECISIONS = Table(
    "decision",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("alias", String, nullable=False),
    Column("version", Integer),  # of the alias, from 1; none where it did not move
    Column("restores", Integer),  # the version that a rollback goes back to
    *(Column(name, String, nullable=False) for name in ("action", "folder", "sha256", "created", "evidence")),
    UniqueConstraint("alias", "version"),
)


def record_run(run_id: str, directory: Path, *, created: str, base: str) -> None:
    """Put a run on the list; the same id again replaces its entry."""
    with transaction() as connection:
        connection.execute(RUNS.delete().where(RUNS.c.id == run_id))
        connection.execute(
            RUNS.insert().values(id=run_id, directory=str(directory.resolve()), created=created, base=base)
        )


def list_runs() -> list[dict[str, Any]]:
    """Newest first: id, directory, created, base. Directories that are gone are left out."""
    with transaction() as connection:
        rows = connection.execute(RUNS.select().order_by(RUNS.c.created.desc())).mappings().all()
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
    check_alias(alias)
    values = {"alias": alias, "action": action, "folder": str(folder.resolve()), "sha256": sha256, "restores": restores}
    values |= {"created": datetime.now(UTC).isoformat(timespec="seconds"), "evidence": str(evidence)}
    moved = RunError(f"{alias} was moved by another process just now.", "Look at it, then decide again.")
    version = None
    try:
        with transaction() as connection:
            if action != "refused":
                newest = connection.execute(
                    select(func.max(DECISIONS.c.version)).where(DECISIONS.c.alias == alias)
                ).scalar()
                if after not in (None, newest):
                    raise moved
                version = (newest or 0) + 1
            connection.execute(DECISIONS.insert().values(version=version, **values))
    except IntegrityError as error:  # only where a database lets two transactions read before one writes
        raise moved from error
    return version


def list_decisions(alias: str | None = None) -> list[dict[str, Any]]:
    """Newest first: alias, version (None: refused), action, restores, folder, sha256, created, evidence."""
    with transaction() as connection:
        wanted = DECISIONS.select() if alias is None else DECISIONS.select().where(DECISIONS.c.alias == alias)
        rows = connection.execute(wanted.order_by(DECISIONS.c.number.desc())).mappings().all()
    return [dict(row) for row in rows]


def list_aliases() -> list[dict[str, Any]]:
    """What each alias points at now, as `list_decisions` gives it, by name."""
    newest: dict[str, dict[str, Any]] = {}
    for row in list_decisions():
        if row["version"] is not None:
            newest.setdefault(row["alias"], row)
    return [newest[alias] for alias in sorted(newest)]


def find_alias(alias: str) -> dict[str, Any] | None:
    """What an alias points at now, as `list_decisions` gives it."""
    wanted = DECISIONS.select().where(DECISIONS.c.alias == alias, DECISIONS.c.version.is_not(None))
    with transaction() as connection:
        row = connection.execute(wanted.order_by(DECISIONS.c.version.desc()).limit(1)).mappings().first()
    return dict(row) if row else None


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
