"""Evals of an owner: what is tested, by which criteria.

Not here: runs (records.eval_runs), bodies (wire.evals). The row of a deleted eval stays without what it held, so that
a list can go on after it.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Column, Connection, Integer, String, Table, and_, or_, select

from tunesmith.database import METADATA, transaction
from tunesmith.serve.records.paging import Cursor, is_id, read_page
from tunesmith.serve.wire.errors import not_found

EVALS = Table(
    "eval",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Integer, nullable=False),  # seconds since 1970
    Column("updated", Integer, nullable=False),
    Column("deleted", Integer, nullable=False),  # 1: the row is only a place in a list
    Column("name", String, nullable=False),
    *(Column(name, JSON, nullable=False) for name in ("labels", "config", "criteria")),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, slots=True)
class Eval:
    """`labels` is the caller's metadata; `config` and `criteria` are the bodies as they were sent."""

    id: str
    owner: str
    created: int
    updated: int
    name: str
    labels: dict[str, str]
    config: dict[str, Any]
    criteria: list[dict[str, Any]]


def add_eval(
    owner: str, *, name: str | None, labels: dict[str, str], config: dict[str, Any], criteria: list[dict[str, Any]]
) -> Eval:
    now = int(time.time())
    id = f"eval_{secrets.token_hex(12)}"
    made = Eval(id, owner, now, now, name or id, labels, config, criteria)
    values = {field: getattr(made, field) for field in made.__slots__}
    with transaction() as connection:
        connection.execute(EVALS.insert().values(**values, deleted=0))
    return made


def find_eval(id: str, *, owner: str) -> Eval | None:
    if not is_id(id):
        return None
    with transaction() as connection:
        row = connection.execute(select(EVALS).where(EVALS.c.id == id, *_seen(owner))).mappings().first()
    return _eval(row) if row else None


def list_evals(owner: str, *, cursor: Cursor, by_update: bool = False) -> tuple[list[Eval], bool]:
    """A page, and whether more follow; by when they were made, or last changed."""
    with transaction() as connection:
        if by_update:
            rows, more = _page_by_update(connection, owner, cursor)
        else:
            where = (EVALS.c.deleted == 0,)
            rows, more = read_page(connection, EVALS, owner=owner, where=where, cursor=cursor, what="eval")
    return [_eval(row) for row in rows], more


def update_eval(id: str, *, owner: str, name: str | None, labels: dict[str, str] | None) -> Eval | None:
    """None keeps what is there."""
    changes: dict[str, Any] = {"updated": int(time.time())}
    changes |= {"name": name} if name is not None else {}
    changes |= {"labels": labels} if labels is not None else {}
    if not is_id(id):
        return None
    with transaction() as connection:
        connection.execute(EVALS.update().where(EVALS.c.id == id, *_seen(owner)).values(**changes))
    return find_eval(id, owner=owner)


def forget_eval(connection: Connection, id: str, *, owner: str) -> bool:
    """False when it is not the owner's. Its runs are for the caller to forget."""
    blank = {"name": "", "labels": {}, "config": {}, "criteria": [], "deleted": 1}
    gone = connection.execute(EVALS.update().where(EVALS.c.id == id, *_seen(owner)).values(**blank))
    return bool(gone.rowcount)


def _page_by_update(connection: Connection, owner: str, cursor: Cursor) -> tuple[list[Any], bool]:
    """As records.paging, with the place in the list being (updated, number)."""
    updated, number = EVALS.c.updated, EVALS.c.number
    wanted = select(EVALS).where(*_seen(owner))
    if cursor.after is not None:
        found = None
        if is_id(cursor.after):
            place = select(updated, number).where(EVALS.c.owner == owner, EVALS.c.id == cursor.after)
            found = connection.execute(place).first()
        if found is None:
            raise not_found("eval", cursor.after, param="after")
        same = and_(updated == found[0], number < found[1] if cursor.newest_first else number > found[1])
        wanted = wanted.where(or_(updated < found[0] if cursor.newest_first else updated > found[0], same))
    order = (updated.desc(), number.desc()) if cursor.newest_first else (updated.asc(), number.asc())
    rows = connection.execute(wanted.order_by(*order).limit(cursor.limit + 1)).mappings().all()
    return list(rows[: cursor.limit]), len(rows) > cursor.limit


def _seen(owner: str) -> tuple[Any, ...]:
    return EVALS.c.owner == owner, EVALS.c.deleted == 0


def _eval(row: Any) -> Eval:
    return Eval(**{field: row[field] for field in Eval.__slots__})
