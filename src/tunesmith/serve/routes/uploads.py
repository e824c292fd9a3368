"""/v1/uploads: a large file in parts: announce it, send the parts in any order, name their order, or cancel.

Not here: how bytes come in (serve.intake), rows (serve.records.uploads). Parts count as stored from when they are in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from tunesmith.database import transaction
from tunesmith.serve import blobs, intake
from tunesmith.serve.access import Identity
from tunesmith.serve.blobs import Staged
from tunesmith.serve.limits import refuse_over_storage
from tunesmith.serve.records import uploads
from tunesmith.serve.records.files import StoredFile, find_file, new_blob
from tunesmith.serve.records.uploads import Part, Upload
from tunesmith.serve.route import Route, Who
from tunesmith.serve.wire.errors import RequestError, not_found
from tunesmith.serve.wire.files import CompleteRequest, Label, UploadRequest, checked, part_body, upload_body

MAX_PART_BYTES = 64 << 20
MAX_PARTS = 1000
COPY_BYTES = 1 << 20


def create_upload(who: Who, body: UploadRequest) -> dict[str, Any]:
    checked(Label(body.filename, body.purpose))
    uploads.drop_expired()
    with transaction() as connection:
        refuse_over_storage(who, body.bytes, connection=connection)
    upload = uploads.create_upload(
        owner=who.owner,
        label=(body.filename, body.purpose),
        mime_type=body.mime_type,
        size=body.bytes,
        file_expires_s=body.expires_after.seconds if body.expires_after else None,
    )
    return upload_body(upload)


async def add_part(request: Request, who: Who, *, upload_id: str) -> dict[str, Any]:
    """Keep one part, in the form's field `data`."""
    upload = await run_in_threadpool(_pending, who, upload_id)
    with await run_in_threadpool(Staged, who.owner) as staged:
        await intake.receive(request, staged, file_field="data", max_bytes=MAX_PART_BYTES, identity=who)
        part = await run_in_threadpool(_keep_part, staged, who, upload)
    return part_body(part)


def _keep_part(staged: Staged, who: Identity, upload: Upload) -> Part:
    with intake.told_when_full():
        staged.flush()
    with transaction() as connection:
        try:
            sizes = uploads.lock_parts(connection, upload)
        except LookupError as error:  # ended while the part came in
            raise _not_pending(upload.id) from error
        if len(sizes) >= MAX_PARTS or sum(sizes) + staged.bytes > upload.bytes:
            message = f"The upload was announced with {upload.bytes:,} bytes, and has at most {MAX_PARTS:,} parts."
            raise RequestError(message, param="data")
        refuse_over_storage(who, staged.bytes, connection=connection)
        blob = new_blob(connection)
        staged.settle(blob)
        part = uploads.add_part(connection, upload, size=staged.bytes, blob=blob)
    staged.kept = True
    return part


async def complete_upload(request: Request, who: Who, *, upload_id: str, body: CompleteRequest) -> dict[str, Any]:
    """Make the file of the parts, in the order given. Asked again for what is complete, the answer is the same."""
    upload, file = await run_in_threadpool(_found, who, upload_id)
    if upload.status == "completed":
        return upload_body(upload, file)
    return await intake.in_check_thread(partial(_complete, request, who, upload_id, body), request)


def _complete(request: Request, who: Identity, upload_id: str, body: CompleteRequest) -> dict[str, Any]:
    upload = _pending(who, upload_id)
    parts = _in_order(upload, body.part_ids)
    gone: list[str] = []

    def end(connection: Connection, file: StoredFile) -> None:
        try:
            gone.extend(uploads.end_upload(connection, upload, status="completed", file=file))
        except LookupError as error:
            raise _not_pending(upload_id) from error

    label = Label(upload.filename, upload.purpose, upload.file_expires_s)
    with Staged(who.owner) as staged:
        md5 = _join(parts, staged)
        if body.md5 and md5 != body.md5.lower():
            raise RequestError("The parts in this order do not have this md5.", param="md5")
        intake.check(request, staged.path, label=label)
        file = intake.keep(staged, who, label=label, also=end)
    blobs.remove(gone)
    return upload_body(_found(who, upload_id)[0], file)


def cancel_upload(who: Who, upload_id: str) -> dict[str, Any]:
    upload = _pending(who, upload_id)
    with transaction() as connection:
        try:
            gone = uploads.end_upload(connection, upload, status="cancelled")
        except LookupError as error:
            raise _not_pending(upload_id) from error
    blobs.remove(gone)
    return upload_body(_found(who, upload_id)[0])


def _in_order(upload: Upload, ids: Sequence[str]) -> list[Part]:
    """The parts named. Raises RequestError unless each is one of this upload, once, and all bytes are there."""
    parts = uploads.find_parts(upload)
    for id in ids:
        if id not in parts:
            raise not_found("part", id, param="part_ids")
    if len(set(ids)) < len(ids):
        raise RequestError("A part is named twice.", param="part_ids")
    found = [parts[id] for id in ids]
    if (size := sum(part.bytes for part in found)) != upload.bytes:
        raise RequestError(
            f"These parts have {size:,} bytes, and the upload was announced with {upload.bytes:,}.", param="part_ids"
        )
    return found


def _join(parts: Sequence[Part], staged: Staged) -> str:
    """Write the parts one after the other; gives the md5 of all of it."""
    md5 = hashlib.md5(usedforsecurity=False)
    with intake.told_when_full():
        for part in parts:
            with (blobs.folder() / part.blob).open("rb") as stream:
                while piece := stream.read(COPY_BYTES):
                    md5.update(piece)
                    staged.write(piece)
    return md5.hexdigest()


def _found(who: Identity, upload_id: str) -> tuple[Upload, StoredFile | None]:
    upload = uploads.find_upload(upload_id, owner=who.owner)
    if upload is None:
        raise not_found("upload", upload_id)
    return upload, find_file(upload.file, owner=who.owner) if upload.file else None


def _pending(who: Identity, upload_id: str) -> Upload:
    upload, _ = _found(who, upload_id)
    if upload.status != "pending":
        raise _not_pending(upload_id, upload.status)
    return upload


def _not_pending(upload_id: str, status: str = "not pending") -> RequestError:
    return RequestError(f"The upload {upload_id!r} is {status}; start a new one.", code="upload_not_pending")


PART = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "format": "binary"}}}
ROUTES = (
    Route("POST", "/v1/uploads", create_upload, "files.write"),
    Route("POST", "/v1/uploads/{upload_id}/parts", add_part, "files.write", docs={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": PART}}}
    }),
    Route("POST", "/v1/uploads/{upload_id}/complete", complete_upload, "files.write"),
    Route("POST", "/v1/uploads/{upload_id}/cancel", cancel_upload, "files.write"),
)  # fmt: skip
