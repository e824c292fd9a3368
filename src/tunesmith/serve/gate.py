"""What every request passes: an id for its answer, who is asking, and an end in words for what nobody caught.

Not here: who may do what (serve.access), routes, the body of an error (serve.wire.errors). Prompts and replies are
never logged: of a failure only its kind and place are.
"""

from __future__ import annotations

import logging
import secrets
import traceback

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.access import Access
from tunesmith.serve.wire.errors import RequestError, error_reply

LOG = logging.getLogger("tunesmith.serve")


class Gate:
    """Outermost: gives every response its x-request-id, says who asks, and turns what nobody caught into a 500.

    Who asks goes into the request's state as `identity`, None where no key was given and none is asked for; a route
    then holds it against its permission.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = f"req_{secrets.token_hex(12)}"
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = state["request_id"]
            await send(message)

        try:
            found = self.access.identify(Headers(scope=scope))
            state["identity"] = None if isinstance(found, RequestError) else found
            state["refusal"] = found if isinstance(found, RequestError) else None
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            await Response(status_code=499)(scope, receive, send_with_id)
        except Exception as error:
            log_failure(error, state["request_id"])
            if not started:
                await error_response(error)(scope, receive, send_with_id)


def error_response(error: Exception) -> JSONResponse:
    status, body = error_reply(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status_code=status, headers=headers)


def log_failure(error: Exception, request_id: str) -> None:
    """Where it happened and the kind of error; not its text, which may quote a prompt."""
    places = "".join(traceback.format_tb(error.__traceback__))
    LOG.error("request %s failed with %s\n%s", request_id, type(error).__name__, places)
