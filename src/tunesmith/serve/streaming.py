"""Requests for text over HTTP: their model, their items as they are made, and server-sent events.

Not here: what bodies say (serve.wire), loading (serve.models). However a request ends, its generation ends with it, and
its tokens are counted. Called by the routes of chat and completions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from tunesmith.serve.answered import Tally
from tunesmith.serve.gate import error_response, log_failure
from tunesmith.serve.models import ServedModel, ServedModels
from tunesmith.serve.reply import Ask, Choice, Item, Piece
from tunesmith.serve.scheduler import Busy, Job
from tunesmith.serve.wire.errors import error_reply

POLL_S = 0.5  # how often a request looks whether its client is still there
LOADING = 4  # requests that wait in a thread for their model; the threads are for all, and a load may take minutes

Made = AsyncGenerator[Piece | Choice, None]
Events = Callable[[Made], AsyncIterator[Mapping[str, Any]]]
Keep = Callable[[dict[str, Any]], Awaitable[None]]  # what is done with a whole body before it is given


async def model_of(request: Request, name: str, *, owner: str) -> ServedModel:
    """The model of this name, at once or when it is loaded. Raises as `ServedModels.get`."""
    state = request.app.state
    models: ServedModels = state.models
    if at_hand := models.at_hand(name):
        return at_hand
    if not hasattr(state, "loading"):
        state.loading = asyncio.Semaphore(LOADING)
    async with state.loading:
        return await run_in_threadpool(partial(models.get, name, owner=owner))


async def items_of(request: Request, model: ServedModel, *, asks: Sequence[Ask], owner: str) -> Made:
    """Pieces and Choices from the base's thread; those of a later Ask have the indices after those of the earlier.

    Their tokens are counted before the last Choice is given, or where they end without it: all prompts, and what was
    made of the replies. A request that is refused costs none.
    Raises what `ServedModels.submit` does, and ClientDisconnect when the client has gone.
    """
    models: ServedModels = request.app.state.models
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Item] = asyncio.Queue()

    def put(first: int, item: Item) -> None:
        if not isinstance(item, Exception):
            item = replace(item, index=first + item.index) if first else item
            tally.take(item)
        with suppress(RuntimeError):  # the loop has closed: the server is gone, nobody listens
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    tally = Tally(request, model.name)
    jobs: list[Job] = []
    left = 0
    try:
        for ask in asks:
            submit = partial(models.submit, model, ask, put=partial(put, left), owner=owner)
            jobs.append(await run_in_threadpool(submit))
            left += ask.n
        tally.jobs = jobs
        looked_s = loop.time()
        while left:
            item: Item | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    item = await arrived.get()
            if loop.time() - looked_s >= POLL_S:
                looked_s = loop.time()
                if await request.is_disconnected():
                    raise ClientDisconnect
            if isinstance(item, Exception):
                raise item
            if item is not None:
                left -= isinstance(item, Choice)
                if not left:
                    tally.note()
                yield item
    finally:
        for job in jobs:
            job.cancelled.set()
        tally.note()


async def answer_whole(
    made: Made, body: Callable[[list[Choice]], dict[str, Any]], *, keep: Keep | None = None
) -> Response:
    """One body of all choices, once it is kept."""
    try:
        async with aclosing(made):
            choices = [item async for item in made if isinstance(item, Choice)]
    except Busy as error:
        return _busy(error)
    whole = body(choices)
    if keep:
        await keep(whole)
    return JSONResponse(whole)


async def answer_stream(request: Request, made: Made, *, events: Events) -> Response:
    """Server-sent events up to [DONE]. What goes wrong before the first item is a plain HTTP error, after it an error
    event."""
    try:
        first = await anext(made)
    except Busy as error:
        return _busy(error)
    written = _written(_after(first, made), events, request_id=request.state.request_id)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(written, media_type="text/event-stream", headers=headers)


async def _after(first: Piece | Choice, made: Made) -> Made:
    async with aclosing(made):
        yield first
        async for item in made:
            yield item


async def _written(made: Made, events: Events, *, request_id: str) -> AsyncIterator[str]:
    try:
        async with aclosing(made):
            async for body in events(made):
                yield _event(body)
    except ClientDisconnect:
        return
    except Exception as error:
        log_failure(error, request_id)
        yield _event(error_reply(error)[1])
    yield "data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _busy(error: Busy) -> Response:
    response = error_response(error)
    response.headers["retry-after"] = str(error.retry_after_s)
    return response
