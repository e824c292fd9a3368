"""Stored completions: what was asked and answered, kept only where the request said `store: true`.

Not here: chat itself (routes.chat, which calls `keep_completion`), bodies (wire.stored). The row of a deleted one stays
without what it held, so that a list can go on after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Column, ColumnElement, Integer, String, Table, select

from tunesmith.database import METADATA, transaction
from tunesmith.serve.records.paging import Cursor, is_id, read_page

COMPLETIONS = Table(
    "chat_completion",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Integer, nullable=False),
    Column("deleted", Integer, nullable=False),  # 1: the row is only a place in a list
    Column("model", String, nullable=False),
    *(Column(name, JSON, nullable=False) for name in ("labels", "messages", "body")),
    sqlite_autoincrement=True,
)
BATCH = 200  # rows looked through at once where only some of them are wanted


@dataclass(frozen=True, slots=True)
class Stored:
    """`messages` are what was asked, `body` is the completion as it was answered, `labels` the caller's metadata."""

    id: str
    owner: str
    created: int
    model: str
    labels: dict[str, str]
    messages: list[dict[str, Any]]
    body: dict[str, Any]


def keep_completion(
    owner: str, body: dict[str, Any], *, messages: Sequence[dict[str, Any]], labels: dict[str, str] | None = None
) -> None:
    """Keep an answered completion: `body` as the client got it, `messages` as the client sent them."""
    values = {"id": body["id"], "created": body["created"], "model": body["model"], "body": body, "owner": owner}
    with transaction() as connection:
        connection.execute(
            COMPLETIONS.insert().values(**values, messages=list(messages), labels=labels or {}, deleted=0)
        )


def find_completion(id: str, *, owner: str) -> Stored | None:
    if not is_id(id):
        return None
    with transaction() as connection:
        row = connection.execute(select(COMPLETIONS).where(COMPLETIONS.c.id == id, *_seen(owner))).mappings().first()
    return _stored(row) if row else None


def list_completions(
    owner: str, *, model: str | None = None, labels: dict[str, str] | None = None, cursor: Cursor
) -> tuple[list[Stored], bool]:
    """A page of those of a model that carry all the labels, and whether more follow."""
    found: list[Stored] = []
    for stored in _matching(owner, model=model, labels=labels or {}, cursor=cursor):
        found.append(stored)
        if len(found) > cursor.limit:
            break
    return found[: cursor.limit], len(found) > cursor.limit


def relabel_completion(id: str, *, owner: str, labels: dict[str, str]) -> Stored | None:
    if not is_id(id):
        return None
    with transaction() as connection:
        which = COMPLETIONS.c.id == id, *_seen(owner)
        connection.execute(COMPLETIONS.update().where(*which).values(labels=labels))
    return find_completion(id, owner=owner)


def delete_completion(id: str, *, owner: str) -> bool:
    if not is_id(id):
        return False
    blank = {"labels": {}, "messages": [], "body": {}, "deleted": 1}
    with transaction() as connection:
        gone = connection.execute(COMPLETIONS.update().where(COMPLETIONS.c.id == id, *_seen(owner)).values(**blank))
    return bool(gone.rowcount)


def _matching(owner: str, *, model: str | None, labels: dict[str, str], cursor: Cursor) -> Iterator[Stored]:
    """Labels are held against each row here: JSON is asked for in another way by every database."""
    where: list[ColumnElement[bool]] = [COMPLETIONS.c.deleted == 0]
    where += [COMPLETIONS.c.model == model] if model is not None else []
    after, more = cursor.after, True
    while more:
        batch = Cursor(BATCH, after, cursor.newest_first)
        with transaction() as connection:
            rows, more = read_page(
                connection, COMPLETIONS, owner=owner, where=where, cursor=batch, what="stored completion"
            )
        for row in rows:
            if labels.items() <= row["labels"].items():
                yield _stored(row)
            after = row["id"]


def _seen(owner: str) -> tuple[ColumnElement[bool], ...]:
    return COMPLETIONS.c.owner == owner, COMPLETIONS.c.deleted == 0


def _stored(row: Any) -> Stored:
    return Stored(**{name: row[name] for name in Stored.__slots__})
