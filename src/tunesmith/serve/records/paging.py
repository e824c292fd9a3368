"""Cursor paging over a table of one owner's objects: rows in the order they were made, after a given one.

Not here: query parameters and list bodies (serve.wire.paging). A table that is paged has `number` (autoincrement: the
order, whatever the clock did), `id` and `owner`. Called by the records of each kind of object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, select

from tunesmith.serve.wire.errors import not_found

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """At most `limit` objects, those that follow the one with the id `after`."""

    limit: int
    after: str | None = None
    newest_first: bool = True


def is_id(text: str) -> bool:
    """Whether a text may be an id of ours; a database is not asked for another one (PostgreSQL takes no NUL)."""
    return ID.fullmatch(text) is not None


def read_page(
    connection: Connection,
    table: Table,
    *,
    owner: str,
    where: Sequence[ColumnElement[bool]] = (),
    cursor: Cursor,
    what: str,
) -> tuple[list[RowMapping], bool]:
    """The rows, and whether more follow. `after` need not meet `where`: a list goes on when its last object was
    deleted meanwhile, if the table keeps its row. Raises RequestError (404) when the owner never had it."""
    number, owned = table.c.number, table.c.owner == owner
    wanted = select(table).where(owned, *where)
    if cursor.after is not None:
        at = None
        if is_id(cursor.after):
            at = connection.execute(select(number).where(owned, table.c.id == cursor.after)).scalar()
        if at is None:
            raise not_found(what, cursor.after, param="after")
        wanted = wanted.where(number < at if cursor.newest_first else number > at)
    order = number.desc() if cursor.newest_first else number.asc()
    rows = connection.execute(wanted.order_by(order).limit(cursor.limit + 1)).mappings().all()
    return list(rows[: cursor.limit]), len(rows) > cursor.limit
