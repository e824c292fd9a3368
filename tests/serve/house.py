"""The whole server's routes over HTTP, as `tunesmith server` puts them together, and a form written by hand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.cli.server_verbs import server_parts
from tunesmith.folders import home
from tunesmith.serve.app import SERVER, create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import running


@contextmanager
def full_server(served: ServedModels | None = None, **options: Any) -> Iterator[str]:
    """Its base URL. The home folder is the one of whoever asks: a test's own, also where the server outlives it."""
    served = served or ServedModels({})
    with running(create_app(served, routes=SERVER, **server_parts(served).state | options)) as url:
        yield url


def bytes_on_disk() -> list[Path]:
    """What lies in the store of files."""
    folder = home() / "files"
    return sorted(folder.iterdir()) if folder.is_dir() else []


BOUNDARY = b"a-boundary"


def form(
    content: bytes = b'{"a": 1}\n',
    *,
    filename: bytes = b"rows.jsonl",
    field: bytes = b"file",
    fields: Mapping[str, str] = {"purpose": "fine-tune"},  # noqa: B006
) -> bytes:
    """A multipart body, its file last."""
    parts = [
        b'--%b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (BOUNDARY, name.encode(), value.encode())
        for name, value in fields.items()
    ]
    head = b'--%b\r\ncontent-disposition: form-data; name="%b"; filename="%b"\r\n\r\n' % (BOUNDARY, field, filename)
    return b"".join([*parts, head, content, b"\r\n--%b--\r\n" % BOUNDARY])


FORM_TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def begin_upload(server: str, content: bytes, *, length: int, headers: str = "") -> socket.socket:
    """A connection that announces `length` bytes of a form and sends `content`; `headers` end with CRLF each."""
    host, port = server.split("/")[2].split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    head = f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\ncontent-type: {FORM_TYPE['content-type']}\r\n{headers}"
    connection.sendall(f"{head}content-length: {length}\r\n\r\n".encode() + content)
    return connection


def at_once(work: Callable[[], object], *, times: int) -> None:
    """So many threads do it together."""
    threads = [threading.Thread(target=work) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
