"""A file's way in: from a streamed form to staged bytes, checked, settled and entered with one row.

Not here: reading a form (serve.multipart), bytes on disk (serve.blobs), what JSONL is (the surface passes that in).
Called by serve.routes.files and serve.routes.uploads. However it ends before the row is there, no byte stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from fastapi import Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from tunesmith.database import transaction
from tunesmith.errors import DataError
from tunesmith.serve.access import Identity
from tunesmith.serve.blobs import Staged, arriving_bytes
from tunesmith.serve.limits import refuse_over_storage
from tunesmith.serve.multipart import FormReader
from tunesmith.serve.records.files import StoredFile, add_file, new_blob
from tunesmith.serve.wire.errors import RequestError
from tunesmith.serve.wire.files import JSONL_PURPOSES, Label, jsonl_error

MAX_FORM_BYTES = 1 << 20  # of a form beside its file
WRITE_BYTES = 1 << 20
LOOK_BYTES = 1 << 26  # after so many it is looked again whether the owner may keep them
PIECE_WAIT_S = 60  # for the next piece of a body
BODY_WAIT_S = 3600  # for all of it
CHECKS_AT_ONCE = 1  # a check takes a processor; the event loop and the models need theirs

T = TypeVar("T")


class CheckUpload(Protocol):
    def __call__(self, path: Path, filename: str) -> None:
        """Raises DataError with every line that is no JSON object."""
        ...


async def receive(
    request: Request, staged: Staged, *, file_field: str, max_bytes: int, identity: Identity
) -> FormReader:
    """Stream a form's file into `staged`; gives the read form. Raises RequestError."""
    too_large = RequestError(f"A file has at most {max_bytes:,} bytes here.", param=file_field, status=413)
    request.state.max_body_bytes = max_bytes + MAX_FORM_BYTES
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        if int(announced) > max_bytes + MAX_FORM_BYTES:
            raise too_large
        staged.expected = max(0, int(announced) - MAX_FORM_BYTES)
        await run_in_threadpool(_refuse_full, identity, staged)
    form = FormReader(request.headers.get("content-type", ""), file_field=file_field)
    waiting, size, looked = bytearray(), 0, 0
    async for piece in _pieces(request):
        for data in form.feed(piece):
            waiting += data
            size += len(data)
        if size > max_bytes:
            raise too_large
        if len(waiting) >= WRITE_BYTES:
            await run_in_threadpool(_write, staged, waiting)
            waiting = bytearray()
        if size - looked >= LOOK_BYTES:
            looked = size
            await run_in_threadpool(_refuse_full, identity, staged)
    form.end()
    await run_in_threadpool(_write, staged, waiting)
    return form


def check(request: Request, path: Path, *, label: Label) -> None:
    """Raises RequestError where the file is not what its purpose needs."""
    check_upload: CheckUpload | None = getattr(request.app.state, "check_upload", None)
    if check_upload and label.purpose in JSONL_PURPOSES:
        try:
            check_upload(path, label.filename)
        except DataError as error:
            raise jsonl_error(error) from error


async def in_check_thread(call: Callable[[], T], request: Request) -> T:
    """In a thread, CHECKS_AT_ONCE at a time."""
    state = request.app.state
    if not hasattr(state, "checks"):
        state.checks = asyncio.Semaphore(CHECKS_AT_ONCE)
    async with state.checks:
        return await run_in_threadpool(call)


def keep(
    staged: Staged, identity: Identity, *, label: Label, also: Callable[[Connection, StoredFile], None] | None = None
) -> StoredFile:
    """Settle the bytes and enter them in one transaction, together with what `also` writes."""
    expires = None if label.life_s is None else int(time.time()) + label.life_s
    with told_when_full():
        staged.flush()
    with transaction() as connection:
        if not also:  # with it the bytes were counted before, as parts
            refuse_over_storage(identity, staged.bytes, connection=connection)
        blob, names = new_blob(connection), (label.filename, label.purpose)
        staged.settle(blob)
        file = add_file(connection, owner=identity.owner, label=names, size=staged.bytes, blob=blob, expires=expires)
        if also:
            also(connection, file)
    staged.kept = True
    return file


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises RequestError (408) when it does not, ClientDisconnect when the client has gone."""
    stream = request.stream()
    until = time.monotonic() + BODY_WAIT_S
    while True:
        try:
            async with asyncio.timeout(min(PIECE_WAIT_S, until - time.monotonic())):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise RequestError("The body did not arrive in time.", status=408) from error
        if piece:
            yield piece


def _refuse_full(identity: Identity, staged: Staged) -> None:
    """Early, so that what cannot be kept does not fill the disk first; `keep` decides."""
    more_bytes = max(staged.bytes, staged.expected) + arriving_bytes(identity.owner, beside=staged)
    with transaction() as connection:
        refuse_over_storage(identity, more_bytes, connection=connection)


def _write(staged: Staged, data: bytearray) -> None:
    with told_when_full():
        staged.write(data)


@contextlib.contextmanager
def told_when_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RequestError("The server's disk is full; nothing was kept. Try again later.", status=503) from error
