"""/v1/chat/completions: one completion, whole or as server-sent events.

Not here: bodies (serve.wire.chat), generation (serve.models). However a request ends, its generation ends with it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from tunesmith.contender import Reply
from tunesmith.serve.gate import log_failure
from tunesmith.serve.models import Item, ServedModels
from tunesmith.serve.reply import Ask
from tunesmith.serve.route import Route
from tunesmith.serve.wire.chat import ChatRequest, Envelope, parse_chat
from tunesmith.serve.wire.errors import RequestError, error_reply

MAX_BODY_BYTES = 16 * 2**20
POLL_S = 0.5  # how often a request without news looks whether its client is still there


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
        log_failure(error, request_id)
        yield _event(error_reply(error)[1])
    yield "data: [DONE]\n\n"


def _event(body: dict[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


ROUTES = (Route("POST", "/v1/chat/completions", chat_completions, "inference"),)
