"""The HTTP application: OpenAI's /v1/models and /v1/chat/completions over ServedModels, and /healthz.

Not here: bodies and statuses (serve.wire), generation (serve.models), the listening process (serve.run).
Prompts and replies are never logged. However a request ends, its generation ends with it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import secrets
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.contender import Reply
from tunesmith.errors import TunesmithError
from tunesmith.serve.models import Item, ServedModels
from tunesmith.serve.reply import Ask
from tunesmith.serve.wire import ChatRequest, Envelope, RequestError, error_reply, model_body, parse_chat

API_KEY_VARIABLE = "TUNESMITH_API_KEY"
MAX_BODY_BYTES = 16 * 2**20
POLL_S = 0.5  # how often a request without news looks whether its client is still there
LOG = logging.getLogger("tunesmith.serve")


def create_app(models: ServedModels) -> FastAPI:
    """The application. With TUNESMITH_API_KEY set, every route but /healthz asks for `Authorization: Bearer`."""
    app = FastAPI(title="tunesmith", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.models = models
    app.add_middleware(Gate, api_key=os.environ.get(API_KEY_VARIABLE, ""))
    app.add_exception_handler(TunesmithError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_api_route("/healthz", healthz)
    app.add_api_route("/v1/models", list_models)
    app.add_api_route("/v1/models/{name:path}", get_model)
    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"])
    return app


async def healthz() -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def list_models(request: Request) -> JSONResponse:
    models: ServedModels = request.app.state.models
    return JSONResponse({"object": "list", "data": [model_body(model) for model in models]})


async def get_model(request: Request, name: str) -> JSONResponse:
    models: ServedModels = request.app.state.models
    return JSONResponse(model_body(models.get(name)))


async def chat_completions(request: Request) -> Response:
    """One completion, whole or as server-sent events. Errors before the first token are plain HTTP errors."""
    models: ServedModels = request.app.state.models
    chat = parse_chat(await _body(request))
    envelope = Envelope(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), models.get(chat.model))
    items = _items(models, chat.model, ask=chat.ask, request=request)
    first = await anext(items)
    if chat.stream:
        events = _events(chat, envelope, first=first, items=items, request_id=request.state.request_id)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    async with aclosing(items):
        last = first
        async for item in items:
            last = item
    assert isinstance(last, Reply)
    return JSONResponse(envelope.completion(last))


async def _body(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":  # what a page of another site could send unasked is not JSON
        raise RequestError("The body must be sent as application/json.", status=415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
    return body


async def _items(models: ServedModels, name: str, *, ask: Ask, request: Request) -> AsyncGenerator[str | Reply, None]:
    """The generation's items from its base's thread. Raises ClientDisconnect when the client has gone."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Item] = asyncio.Queue()

    def put(item: Item) -> None:
        with suppress(RuntimeError):  # the loop has closed: the server is gone, nobody listens
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    cancelled = models.submit(name, ask, put=put)
    try:
        while True:
            item: Item | None = None
            with suppress(TimeoutError):
                item = await asyncio.wait_for(arrived.get(), POLL_S)
            if await request.is_disconnected():
                raise ClientDisconnect
            if isinstance(item, Exception):
                raise item
            if item is not None:
                yield item
            if isinstance(item, Reply):
                return
    finally:
        cancelled.set()


async def _events(
    chat: ChatRequest,
    envelope: Envelope,
    *,
    first: str | Reply,
    items: AsyncGenerator[str | Reply, None],
    request_id: str,
) -> AsyncIterator[str]:
    """Server-sent events up to [DONE]; a failure after the first token is an error event."""
    extra = {"usage": None} if chat.stream_options.include_usage else {}
    try:
        async with aclosing(items):
            yield _event({**envelope.chunk({"role": "assistant", "content": ""}), **extra})
            item = first
            while isinstance(item, str):
                yield _event({**envelope.chunk({"content": item}), **extra})
                item = await anext(items)
            yield _event({**envelope.chunk({}, finish_reason=item.finish_reason), **extra})
            if extra:
                yield _event(envelope.usage_chunk(item))
    except ClientDisconnect:
        return
    except Exception as error:
        _log_failure(error, request_id)
        yield _event(error_reply(error)[1])
    yield "data: [DONE]\n\n"


def _event(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _error_response(error: Exception) -> JSONResponse:
    status, body = error_reply(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status_code=status, headers=headers)


async def _refuse(request: Request, error: Exception) -> Response:
    return _error_response(error)


async def _refuse_route(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    response = _error_response(RequestError(message, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


def _log_failure(error: Exception, request_id: str) -> None:
    """Where it happened and the kind of error; not its text, which may quote a prompt."""
    places = "".join(traceback.format_tb(error.__traceback__))
    LOG.error("request %s failed with %s\n%s", request_id, type(error).__name__, places)


class Gate:
    """Outermost: gives every response its x-request-id, refuses strangers, and turns what nobody caught into a 500.

    Without a key only this machine may ask: a Host or Origin of another name is a web page reaching for a local server
    (DNS rebinding). With a key, the key decides.
    """

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self.api_key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if refusal := self._refusal(Headers(scope=scope), scope["path"]):
                await _error_response(refusal)(scope, receive, send_with_id)
            else:
                await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            await Response(status_code=499)(scope, receive, send_with_id)
        except Exception as error:
            _log_failure(error, request_id)
            if not started:
                await _error_response(error)(scope, receive, send_with_id)

    def _refusal(self, headers: Headers, path: str) -> RequestError | None:
        if path == "/healthz":
            return None
        if self.api_key:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.api_key):
                return None
            return RequestError("The API key is missing or wrong.", code="invalid_api_key", status=401)
        origin = headers.get("origin")
        if is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname) and (
            origin is None or is_loopback(urlsplit(origin).hostname)
        ):
            return None
        return RequestError("Without an API key only this machine is answered.", code="forbidden_host", status=403)


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine's own."""
    if host is None or host.lower() == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
