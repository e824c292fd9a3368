"""The listening process: uvicorn on a socket of our own, in the foreground or in a thread.

Not here: what is answered (serve.app). A host that others can reach is refused unless an API key is set.
Ctrl-C and SIGTERM let running requests end for GRACE_S, then cancel them; both end without an error.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tunesmith.errors import InputError
from tunesmith.serve.access import API_KEY_VARIABLE, is_loopback
from tunesmith.serve.app import create_app
from tunesmith.serve.heads import BoundedHeads
from tunesmith.serve.models import ServedModels

LOOPBACK = "127.0.0.1"
GRACE_S = 5


def serve(models: ServedModels, *, host: str = LOOPBACK, port: int = 8600, ready: Callable[[str], None]) -> None:
    """Answer until Ctrl-C or SIGTERM. `ready` gets the base URL (with /v1) as soon as a client may connect.

    Port 0 takes a free one. Raises InputError for a host or port that cannot be used.
    """
    answer(create_app(models), host=host, port=port, ready=lambda url: ready(f"{url}/v1"))


def answer(app: ASGIApp, *, host: str, port: int, ready: Callable[[str], None], has_keys: bool | None = None) -> None:
    """The same for any application; `ready` gets its address without a path. `has_keys` as for `check_host`."""
    listener = listen(host, port, has_keys=has_keys)
    server = _server(app)
    with _ending(server):
        ready(_url(listener))
        server.run(sockets=[listener])


@contextmanager
def running(app: ASGIApp, *, port: int = 0) -> Iterator[str]:
    """The application on 127.0.0.1 in a thread of its own; gives the base URL (with /v1), and stops at the end."""
    listener = listen(LOOPBACK, port)
    server = _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="tunesmith-serve", daemon=True)
    thread.start()
    try:
        yield f"{_url(listener)}/v1"
    finally:
        server.should_exit = True
        thread.join()


def listen(host: str, port: int, *, has_keys: bool | None = None) -> socket.socket:
    """A listening socket. Raises InputError when the port is in use, or the host is open to others without a key."""
    check_host(host, has_keys=has_keys)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it on sockets of its own only
        return listener
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise InputError(
                f"Port {port} of {host} is in use.", "Choose another --port; 0 takes a free one."
            ) from error
        raise InputError(f"{host} port {port} cannot be used: {error}.", "Choose another --host or --port.") from error


def check_host(host: str, *, has_keys: bool | None = None) -> None:
    """Raises InputError for a host beyond this machine where nobody would be asked for a key. `has_keys`: whether the
    server's list of keys has one; None: it has no list."""
    if is_loopback(host) or has_keys or os.environ.get(API_KEY_VARIABLE):
        return
    way = f"Set {API_KEY_VARIABLE}" if has_keys is None else "Make one with `tunesmith keys create NAME`"
    raise InputError(
        f"{host} can be reached by other machines, and no API key is set.", f"{way}, or keep --host {LOOPBACK}."
    )


def _server(app: ASGIApp) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=BoundedHeads,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=GRACE_S,
    )
    return uvicorn.Server(config)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _ending(server: uvicorn.Server) -> Iterator[None]:
    """uvicorn raises a signal it caught again once it has ended, which would make a clean stop look like a failure."""

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
