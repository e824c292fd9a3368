"""Models that people made on this server: name, owner, what it is made of, and the job it came from.

Not here: weights in memory (serve.models), bases, which every owner sees. A name is public and holds no slash; a
foreign one is found as little as one that never was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Integer, String, Table, select

from tunesmith import store
from tunesmith.database import METADATA, transaction

EVERYONE = "tunesmith"  # who owns what is served to all

MODELS = Table(
    "model",
    METADATA,
    Column("name", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Integer, nullable=False),  # seconds since 1970
    Column("base", String, nullable=False),
    Column("folder", String, nullable=False),  # of the adapter, or of the whole model where all weights were trained
    Column("sha256", String, nullable=False),  # of its weights
    Column("job", String),  # the fine-tuning job it came from
    Column("step", Integer),  # of the job's checkpoint; none: the job's result
)


@dataclass(frozen=True, slots=True)
class Made:
    """A row of the table."""

    name: str
    owner: str
    created: int
    base: str
    folder: Path
    sha256: str
    job: str | None = None
    step: int | None = None


def publish(connection: Connection, made: Made) -> None:
    """Put a model on the list, in the caller's transaction. Raises IntegrityError when the name is taken."""
    values = {name: getattr(made, name) for name in made.__slots__}
    connection.execute(MODELS.insert().values(**values | {"folder": str(made.folder)}))


def withdraw_models(connection: Connection, names: Sequence[str]) -> list[Path]:
    """Take models off the list, in the caller's transaction; gives their folders."""
    if not names:
        return []
    gone = MODELS.delete().where(MODELS.c.name.in_(names)).returning(MODELS.c.folder)
    return [Path(folder) for folder in connection.execute(gone).scalars()]


def find_alias(name: str) -> Made | None:
    """What an alias such as support@prod points at now. Aliases are the administrator's (`tunesmith ship`), and served
    to everyone."""
    found = store.find_alias(name) if store.ALIAS.fullmatch(name) else None
    return _alias(found) if found else None


def list_aliases() -> list[Made]:
    return [_alias(row) for row in store.list_aliases()]


def find_model(name: str, *, owner: str) -> Made | None:
    with transaction() as connection:
        row = (
            connection.execute(select(MODELS).where(MODELS.c.name == name, MODELS.c.owner == owner)).mappings().first()
        )
    return _made(row) if row else None


def list_models(owner: str) -> list[Made]:
    """Newest first."""
    wanted = select(MODELS).where(MODELS.c.owner == owner).order_by(MODELS.c.created.desc(), MODELS.c.name)
    with transaction() as connection:
        return [_made(row) for row in connection.execute(wanted).mappings()]


def delete_model(name: str, *, owner: str) -> bool:
    """Take it off the list; its files stay with the job. False when it is not the owner's."""
    with transaction() as connection:
        gone = connection.execute(MODELS.delete().where(MODELS.c.name == name, MODELS.c.owner == owner))
    return bool(gone.rowcount)


def _alias(row: Mapping[str, Any]) -> Made:
    folder, created = Path(row["folder"]), datetime.fromisoformat(row["created"])
    return Made(row["alias"], EVERYONE, int(created.timestamp()), _base_of(folder), folder, row["sha256"])


def _base_of(folder: Path) -> str:
    """As the folder says; empty where it is gone, which is told when the model is asked."""
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("tunesmith.json", "base")):
        with contextlib.suppress(OSError, ValueError):
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            return str(values.get(key, "")) if isinstance(values, dict) else ""
    return ""


def _made(row: Any) -> Made:
    return Made(**{**row, "folder": Path(row["folder"])})
