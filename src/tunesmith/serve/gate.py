"""What every request passes: an id, who is asking, a limit on its body, and an end in words for what nobody caught.

Not here: who may do what (serve.access), routes, the body of an error (serve.wire.errors). Prompts and replies are
never logged: of a failure only its kind and place are.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from collections.abc import Container
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.access import Access
from tunesmith.serve.wire.errors import RequestError, error_reply

LOG = logging.getLogger("tunesmith.serve")
MAX_BODY_BYTES = 16 << 20  # a route that streams sets its own in the request's state
DRAINED_BYTES = 64 << 20  # of a refused body, so that its sender comes to read the answer; a longer one is cut off


class Gate:
    """Outermost: gives every response its x-request-id, says who asks, and turns what nobody caught into a 500.

    Who asks goes into the request's state as `identity`, which a route holds against its permission. A stranger is
    refused before a byte of the body is read, and does not learn which routes there are; `public` are the paths that
    answer also a stranger.
    """

    def __init__(self, app: ASGIApp, access: Access, public: Container[str]) -> None:
        self.app = app
        self.access = access
        self.public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = f"req_{secrets.token_hex(12)}"
        state["headers"] = {}  # that the answer is to carry, such as how much of a limit is left
        state["max_body_bytes"] = MAX_BODY_BYTES
        headers = Headers(scope=scope)
        body = _Body(receive, state, headers)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                more = {**state["headers"], "x-request-id": state["request_id"]}
                MutableHeaders(scope=message).update(more | ({"connection": "close"} if body.goes_on else {}))
            await send(message)

        try:
            found = self.access.identify(headers)
            state["identity"] = None if isinstance(found, RequestError) else found
            state["refusal"] = found if isinstance(found, RequestError) else None
            if state["refusal"] and scope["path"] not in self.public:
                await error_response(state["refusal"])(scope, receive, send_with_id)
                return
            await self.app(scope, body.receive, send_with_id)
        except ClientDisconnect:
            await Response(status_code=499)(scope, receive, send_with_id)
        except Exception as error:
            log_failure(error, state["request_id"])
            if not started:
                await error_response(error)(scope, receive, send_with_id)


class _Body:
    """The messages of a request's body, until there are more bytes than the state allows."""

    def __init__(self, receive: Receive, state: dict[str, Any], headers: Headers) -> None:
        self._receive = receive
        self._state = state
        self._read = 0
        length = headers.get("content-length", "0")
        # whether more may come than is worth reading to its end for nothing
        self.goes_on = "transfer-encoding" in headers or not length.isdecimal() or int(length) > DRAINED_BYTES

    async def receive(self) -> Message:
        """Raises HTTPException (413), which FastAPI lets pass where it reads a body."""
        message = await self._receive()
        self.goes_on = self.goes_on and message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._state["max_body_bytes"]:
            raise HTTPException(413, f"The body is larger than {self._state['max_body_bytes']} bytes")
        return message


def error_response(error: Exception) -> JSONResponse:
    status, body = error_reply(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    headers |= error.headers if isinstance(error, RequestError) else {}
    return JSONResponse(body, status_code=status, headers=headers)


def log_failure(error: Exception, request_id: str) -> None:
    """Where it happened and the kind of error; not its text, which may quote a prompt."""
    places = "".join(traceback.format_tb(error.__traceback__))
    LOG.error("request %s failed with %s\n%s", request_id, type(error).__name__, places)
