"""Files that people uploaded, and results the server wrote for them: a row each, beside bytes under a random name.

Not here: bytes on disk (serve.blobs), uploads in parts (serve.records.uploads), HTTP. A file name is a label: it is
shown and never becomes a path. The row of a deleted file stays without its label, so that a list can go on after it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, Connection, Integer, String, Table, func, select, text, update

from tunesmith.database import METADATA, transaction
from tunesmith.serve import blobs
from tunesmith.serve.records.paging import Cursor, is_id, read_page

FILES = Table(
    "file",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Integer, nullable=False),  # seconds since 1970
    Column("expires", Integer),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("status", String, nullable=False),  # processed or deleted
    Column("blob", String, nullable=False),  # the name of its bytes
    sqlite_autoincrement=True,  # a number is never given twice
)
MARKS = Table("blob_mark", METADATA, Column("mark", String, primary_key=True))  # one row


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of one owner; `path` is where its bytes lie."""

    id: str
    owner: str
    bytes: int
    created: int
    filename: str
    purpose: str
    status: str
    path: Path
    expires: int | None = None


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"


def new_blob(connection: Connection, suffix: str = "") -> str:
    """A name for bytes. It begins with the mark of this database, so that a server that is started with another one,
    by mistake, does not take them for something left behind."""
    return f"{blob_marks(connection)[0]}{secrets.token_hex(12)}{suffix}"


def blob_marks(connection: Connection) -> list[str]:
    """What the names of this database's bytes begin with; the first is made at the first start."""
    marks = sorted(connection.execute(select(MARKS.c.mark)).scalars())
    if not marks:
        marks = [f"{secrets.token_hex(4)}-"]
        connection.execute(MARKS.insert().values(mark=marks[0]))
    return marks


def add_file(
    connection: Connection, *, owner: str, label: tuple[str, str], size: int, blob: str, expires: int | None = None
) -> StoredFile:
    """Enter bytes that lie settled under the name `blob`; `label` is the file name and the purpose."""
    row: dict[str, Any] = {"id": new_id("file-"), "owner": owner, "created": int(time.time()), "expires": expires}
    row |= {"filename": label[0], "purpose": label[1], "bytes": size, "status": "processed", "blob": blob}
    connection.execute(FILES.insert().values(**row))
    return _file(row)


def find_file(id: str, *, owner: str) -> StoredFile | None:
    if not is_id(id):
        return None
    with transaction() as connection:
        row = connection.execute(select(FILES).where(FILES.c.id == id, *_seen(owner))).mappings().first()
    return _file(row) if row else None


def list_files(owner: str, *, cursor: Cursor, purpose: str | None = None) -> tuple[list[StoredFile], bool]:
    """A page, and whether more follow."""
    if purpose and not is_id(purpose):
        return [], False
    where = [*_seen(owner), *([FILES.c.purpose == purpose] if purpose else [])]
    with transaction() as connection:
        rows, more = read_page(connection, FILES, owner=owner, where=where, cursor=cursor, what="file")
    return [_file(row) for row in rows], more


def delete_file(id: str, *, owner: str) -> bool:
    """False when it is not the owner's. Who reads it just now reads it to its end."""
    file = find_file(id, owner=owner)
    if file is None:
        return False
    with transaction() as connection:
        _forget(connection, (FILES.c.id == id) & (FILES.c.owner == owner))
    blobs.remove([file.path.name])
    return True


def store_result(connection: Connection, *, owner: str, filename: str, purpose: str, data: bytes) -> str:
    """Keep bytes the server made, in the caller's transaction; gives the file's id. What the transaction does not
    commit is swept at a later start."""
    blob = new_blob(connection, blobs.RESULT)
    with blobs.Staged(owner) as staged:
        staged.write(data)
        staged.flush()
        staged.settle(blob)
        file = add_file(connection, owner=owner, label=(filename, purpose), size=len(data), blob=blob)
        staged.kept = True
    return file.id


def stored_bytes(connection: Connection, owner: str) -> int:
    """What an owner's files take. Until the transaction ends no other one adds to it."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:owner))"), {"owner": f"files of {owner}"})
    total = select(func.sum(FILES.c.bytes)).where(FILES.c.owner == owner, FILES.c.status != "deleted")
    return int(connection.execute(total).scalar() or 0)


def drop_expired(connection: Connection) -> list[str]:
    """Forget the files of every owner whose time is over; gives the names of their bytes, for the caller to remove."""
    over = (FILES.c.status != "deleted") & (FILES.c.expires <= int(time.time()))
    names = list(connection.execute(select(FILES.c.blob).where(over)).scalars())
    if names:
        _forget(connection, over)
    return names


def blob_names(connection: Connection) -> set[str]:
    """The names of the bytes of every owner."""
    return set(connection.execute(select(FILES.c.blob).where(FILES.c.status != "deleted")).scalars())


def _forget(connection: Connection, which: ColumnElement[bool]) -> None:
    connection.execute(update(FILES).where(which).values(status="deleted", filename="", bytes=0))


def _seen(owner: str) -> tuple[ColumnElement[bool], ...]:
    not_over = FILES.c.expires.is_(None) | (FILES.c.expires > int(time.time()))
    return FILES.c.owner == owner, FILES.c.status != "deleted", not_over


def _file(row: Mapping[Any, Any]) -> StoredFile:
    same = ("id", "owner", "bytes", "created", "filename", "purpose", "status", "expires")
    return StoredFile(path=blobs.folder() / row["blob"], **{name: row[name] for name in same})
