"""Uploads in parts: what was announced, the parts that came, and the file they became.

Not here: bytes on disk (serve.blobs), the file itself (serve.records.files), HTTP. An upload that is not completed
within LIFE_S expires, and its parts go. Called by serve.routes.uploads; `tidy` by the server's start.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, String, Table, delete, func, select, update

from tunesmith.database import METADATA, transaction
from tunesmith.serve import blobs
from tunesmith.serve.records import files
from tunesmith.serve.records.files import StoredFile, new_id
from tunesmith.serve.records.paging import is_id

LIFE_S = 3600

UPLOADS = Table(
    "upload",
    METADATA,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Integer, nullable=False),  # seconds since 1970
    Column("expires", Integer, nullable=False),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("mime_type", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # as announced
    Column("file_expires_s", Integer),  # how long the file is to live
    Column("status", String, nullable=False),  # pending, completed or cancelled; expired is read off the clock
    Column("file", String),
)
PARTS = Table(
    "upload_part",
    METADATA,
    Column("id", String, primary_key=True),
    Column("upload", String, nullable=False, index=True),
    Column("owner", String, nullable=False, index=True),
    Column("created", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("blob", String, nullable=False),  # the name of its bytes
)


@dataclass(frozen=True, slots=True)
class Upload:
    id: str
    owner: str
    created: int
    expires: int
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    file_expires_s: int | None
    status: str
    file: str | None


@dataclass(frozen=True, slots=True)
class Part:
    id: str
    upload: str
    owner: str
    created: int
    bytes: int
    blob: str


def create_upload(
    *, owner: str, label: tuple[str, str], mime_type: str, size: int, file_expires_s: int | None = None
) -> Upload:
    """Announce a file of `size` bytes; `label` is its name and its purpose."""
    now = int(time.time())
    row = {"id": new_id("upload_"), "owner": owner, "created": now, "expires": now + LIFE_S, "filename": label[0]}
    row |= {"purpose": label[1], "mime_type": mime_type, "bytes": size, "file_expires_s": file_expires_s}
    row |= {"status": "pending", "file": None}
    with transaction() as connection:
        connection.execute(UPLOADS.insert().values(**row))
    return _upload(row)


def find_upload(id: str, *, owner: str) -> Upload | None:
    if not is_id(id):
        return None
    with transaction() as connection:
        row = connection.execute(select(UPLOADS).where(UPLOADS.c.id == id, UPLOADS.c.owner == owner)).mappings().first()
    return _upload(row) if row else None


def lock_parts(connection: Connection, upload: Upload) -> list[int]:
    """The sizes of an upload's parts; until the transaction ends no other one adds to them or ends the upload.

    Raises LookupError when it is not pending any more.
    """
    pending = (UPLOADS.c.id == upload.id, UPLOADS.c.owner == upload.owner, UPLOADS.c.status == "pending")
    if connection.execute(select(UPLOADS.c.id).where(*pending).with_for_update()).first() is None:
        raise LookupError(upload.id)
    mine = (PARTS.c.upload == upload.id, PARTS.c.owner == upload.owner)
    return list(connection.execute(select(PARTS.c.bytes).where(*mine)).scalars())


def add_part(connection: Connection, upload: Upload, *, size: int, blob: str) -> Part:
    """Enter bytes that lie settled under the name `blob`."""
    part = Part(new_id("part_"), upload.id, upload.owner, int(time.time()), size, blob)
    connection.execute(PARTS.insert().values(**asdict(part)))
    return part


def find_parts(upload: Upload) -> dict[str, Part]:
    where = (PARTS.c.upload == upload.id, PARTS.c.owner == upload.owner)
    with transaction() as connection:
        return {row["id"]: Part(**row) for row in connection.execute(select(PARTS).where(*where)).mappings()}


def part_bytes(connection: Connection, owner: str) -> int:
    """What an owner's parts take that are not a file yet."""
    return int(connection.execute(select(func.sum(PARTS.c.bytes)).where(PARTS.c.owner == owner)).scalar() or 0)


def end_upload(connection: Connection, upload: Upload, *, status: str, file: StoredFile | None = None) -> list[str]:
    """Complete or cancel a pending upload and forget its parts; gives the names of their bytes, for the caller to
    remove. Raises LookupError when it is not pending any more."""
    mine = (UPLOADS.c.id == upload.id, UPLOADS.c.owner == upload.owner, UPLOADS.c.status == "pending")
    values = {"status": status, "file": file.id if file else None}
    if connection.execute(update(UPLOADS).where(*mine).values(**values)).rowcount != 1:
        raise LookupError(upload.id)
    return _forget_parts(connection, [upload.id])


def drop_expired() -> None:
    """Remove what has had its time: files, and the parts of uploads that were never completed; of every owner."""
    over = (UPLOADS.c.status == "pending") & (UPLOADS.c.expires <= int(time.time()))
    with transaction() as connection:
        names = files.drop_expired(connection)
        with_parts = select(UPLOADS.c.id).where(over, UPLOADS.c.id.in_(select(PARTS.c.upload)))
        names += _forget_parts(connection, list(connection.execute(with_parts).scalars()))
    blobs.remove(names)


def tidy() -> int:
    """At the start of the only server of this home: remove what has expired, and what a killed one left behind. Gives
    the number of files that were left behind."""
    drop_expired()
    with transaction() as connection:
        known = files.blob_names(connection) | set(connection.execute(select(PARTS.c.blob)).scalars())
        marks = files.blob_marks(connection)
    return blobs.sweep(known, marks=marks)


def _forget_parts(connection: Connection, uploads: Sequence[str]) -> list[str]:
    which = PARTS.c.upload.in_(uploads)
    names = list(connection.execute(select(PARTS.c.blob).where(which)).scalars())
    connection.execute(delete(PARTS).where(which))
    return names


def _upload(row: Mapping[Any, Any]) -> Upload:
    is_over = row["status"] == "pending" and row["expires"] <= int(time.time())
    return Upload(**{**row, "status": "expired" if is_over else row["status"]})
