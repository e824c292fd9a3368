"""/v1/completions: what follows a plain text, whole or as server-sent events.

Not here: bodies (serve.wire.completions), the stream itself (serve.streaming), generation (serve.models).
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from tunesmith.serve.answered import note_answer
from tunesmith.serve.models import ServedModels
from tunesmith.serve.reply import Choice
from tunesmith.serve.route import Route, Who
from tunesmith.serve.streaming import Made, answer_stream, answer_whole, items_of
from tunesmith.serve.wire.body import read_bytes
from tunesmith.serve.wire.completions import CompletionRequest, TextEnvelope, parse_completion


async def completions(request: Request, who: Who) -> Response:
    """What follows a text, or several. Errors before the first token are plain HTTP errors."""
    models: ServedModels = request.app.state.models
    asked = parse_completion(await read_bytes(request))
    model = await run_in_threadpool(models.get, asked.model, owner=who.owner)
    asks = await run_in_threadpool(asked.asks, model.base)
    envelope = TextEnvelope(f"cmpl-{secrets.token_hex(12)}", int(time.time()), model, asked)
    made = items_of(request, asked.model, asks=asks, owner=who.owner)
    noted = partial(note_answer, request, sent=None, labels=None)
    if not asked.stream:
        return await answer_whole(made, envelope.completion, noted=noted)

    async def events(made: Made) -> AsyncIterator[dict[str, Any]]:
        extra = {"usage": None} if asked.stream_options.include_usage else {}
        choices, offsets = [], Counter[int]()
        for index in range(len(asks) * asked.n if asked.echo else 0):
            yield {**envelope.chunk(index, envelope.echoed(index)), **extra}
        async for item in made:
            if isinstance(item, Choice):
                choices.append(item)
                if len(choices) == len(asks) * asked.n:
                    await noted(envelope.completion(choices))
                yield {**envelope.chunk(item.index, "", reason=item.reply.finish_reason), **extra}
            else:
                offset = offsets[item.index]
                yield {**envelope.chunk(item.index, item.text, tokens=item.tokens, offset=offset), **extra}
                offsets[item.index] += len(item.text)
        if extra:
            yield envelope.usage_chunk(choices)

    return await answer_stream(request, made, events=events)


ROUTES = (Route("POST", "/v1/completions", completions, "inference", body=CompletionRequest),)
