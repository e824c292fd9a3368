"""/v1/files: upload, list, look at, read and delete files.

Not here: how a file comes in (serve.intake), rows (serve.records.files).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from tunesmith.serve import intake
from tunesmith.serve.blobs import Staged
from tunesmith.serve.records import files
from tunesmith.serve.records.files import StoredFile
from tunesmith.serve.records.paging import Cursor
from tunesmith.serve.records.uploads import drop_expired
from tunesmith.serve.route import Route, Who
from tunesmith.serve.wire.errors import not_found
from tunesmith.serve.wire.files import PURPOSES, file_body, read_form
from tunesmith.serve.wire.paging import After, Order, list_body

MAX_FILE_BYTES = 4 << 30
READ_BYTES = 1 << 20

Limit = Annotated[int, Query(ge=1, le=10_000)]


async def create_file(request: Request, who: Who) -> dict[str, Any]:
    """Keep the file of a multipart form. Its bytes go to the disk as they come."""
    await run_in_threadpool(drop_expired)
    with await run_in_threadpool(Staged, who.owner) as staged:
        form = await intake.receive(request, staged, file_field="file", max_bytes=MAX_FILE_BYTES, identity=who)
        label = read_form(form.filename, form.fields)
        await intake.in_check_thread(partial(intake.check, request, staged.path, label=label), request)
        file = await run_in_threadpool(intake.keep, staged, who, label=label)
    return file_body(file)


def list_files(
    who: Who, *, limit: Limit = 10_000, after: After = None, order: Order = "desc", purpose: str | None = None
) -> dict[str, Any]:
    found, more = files.list_files(who.owner, cursor=Cursor(limit, after, order == "desc"), purpose=purpose)
    return list_body([file_body(file) for file in found], has_more=more)


def get_file(who: Who, file_id: str) -> dict[str, Any]:
    return file_body(_file(who, file_id))


def read_content(who: Who, file_id: str) -> StreamingResponse:
    file = _file(who, file_id)
    try:
        stream = file.path.open("rb")
    except FileNotFoundError as error:  # deleted since, or gone from the disk
        raise not_found("file", file_id) from error
    headers = {
        "content-length": str(file.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "x-content-type-options": "nosniff",  # what someone uploaded is never a page of this server
    }
    return StreamingResponse(_pieces(stream), media_type="application/octet-stream", headers=headers)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(READ_BYTES):
            yield piece


def delete_file(who: Who, file_id: str) -> dict[str, Any]:
    if not files.delete_file(file_id, owner=who.owner):
        raise not_found("file", file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _file(who: Who, file_id: str) -> StoredFile:
    file = files.find_file(file_id, owner=who.owner)
    if file is None:
        raise not_found("file", file_id)
    return file


BYTES = {"type": "string", "format": "binary"}
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": BYTES,
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}
ROUTES = (
    Route("POST", "/v1/files", create_file, "files.write", docs={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
    }),
    Route("GET", "/v1/files", list_files, "files.read"),
    Route("GET", "/v1/files/{file_id}", get_file, "files.read"),
    Route("GET", "/v1/files/{file_id}/content", read_content, "files.read", docs={
        "responses": {"200": {"content": {"application/octet-stream": {"schema": BYTES}}}}
    }),
    Route("DELETE", "/v1/files/{file_id}", delete_file, "files.write"),
)  # fmt: skip
