"""HTTP's own part of a request: its line and headers come within HEAD_S and MOST_BYTES, or the connection ends.

Not here: bodies (serve.gate, serve.intake), the listening process (serve.run). uvicorn parses with httptools, which is
half a millisecond faster than h11 and has no limits of its own.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 30.0  # from the connection, or from the first byte of a later request
MOST_BYTES = 64 << 10  # beyond what the first piece brings, which is never more than a few of these


class BoundedHeads(HttpToolsProtocol):
    """408 to who is too slow, 431 to who sends too much; uvicorn's 400 to what is no HTTP."""

    _in_head = True
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head:  # all of it belongs there
            self._head_bytes += len(data)
            if self._head_bytes > MOST_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_S, self._refuse, b"408 Request Timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_timer()
        if self.scope is not None and not self.transport.is_closing():  # who has said nothing is told nothing
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
