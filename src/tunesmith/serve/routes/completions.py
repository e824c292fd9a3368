"""/v1/completions: what follows a plain text, whole or as server-sent events.

Not here: bodies (serve.wire.completions), the stream itself (serve.streaming), generation (serve.models).
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from tunesmith.contender import Reply
from tunesmith.serve.answered import note_tokens
from tunesmith.serve.models import ServedModel, ServedModels
from tunesmith.serve.reply import Ask, Choice
from tunesmith.serve.route import Route, Who
from tunesmith.serve.streaming import Made, answer_stream, answer_whole, items_of, model_of
from tunesmith.serve.wire.body import read_bytes
from tunesmith.serve.wire.completions import CompletionRequest, TextEnvelope, parse_completion


async def completions(request: Request, who: Who) -> Response:
    """What follows a text, or several. Errors before the first token are plain HTTP errors."""
    models: ServedModels = request.app.state.models
    asked = parse_completion(await read_bytes(request))
    model = await model_of(request, asked.model, owner=who.owner)
    asks = await run_in_threadpool(asked.asks, model.base)
    told = []
    for ask in asks if asked.echo else ():
        if asked.logprobs is not None:
            told.append(await run_in_threadpool(partial(models.tell, model, ask.ids, top=asked.logprobs)))
        elif asked.max_tokens == 0:
            await run_in_threadpool(models.check, model, ask.ids)
    envelope = TextEnvelope(f"cmpl-{secrets.token_hex(12)}", int(time.time()), model, asked, told)
    if asked.max_tokens == 0:
        made = _nothing(request, model, asks=asks)
    else:
        made = items_of(request, model, asks=asks, owner=who.owner)
    if not asked.stream:
        return await answer_whole(made, envelope.completion)
    return await answer_stream(request, made, events=partial(_events, envelope))


async def _nothing(request: Request, model: ServedModel, *, asks: Sequence[Ask]) -> Made:
    """No new text for any of them: the replies that max_tokens 0 asks for. The prompts are counted."""
    note_tokens(request, model.name, prompt=sum(len(ask.ids) for ask in asks))
    places = [(number, place) for number, ask in enumerate(asks) for place in range(ask.n)]
    for index, (number, _) in enumerate(places):
        yield Choice(index, Reply("", len(asks[number].ids), 0, 0.0, "length"))


async def _events(envelope: TextEnvelope, made: Made) -> AsyncIterator[dict[str, Any]]:
    asked = envelope.asked
    extra = {"usage": None} if asked.stream_options.include_usage else {}
    count, choices = len(asked.prompt) * asked.n, []
    offsets = Counter({index: len(envelope.echoed(index)) for index in range(count)})
    for index in range(count if asked.echo else 0):
        tokens = envelope.echoed_tokens(index)
        yield {**envelope.chunk(index, envelope.echoed(index), tokens=tokens), **extra}
    async for item in made:
        if isinstance(item, Choice):
            choices.append(item)
            yield {**envelope.chunk(item.index, "", reason=item.reply.finish_reason), **extra}
        else:
            offset = offsets[item.index]
            yield {**envelope.chunk(item.index, item.text, tokens=item.tokens, offset=offset), **extra}
            offsets[item.index] += len(item.text)
    if extra:
        yield envelope.usage_chunk(choices)


ROUTES = (Route("POST", "/v1/completions", completions, "inference", body=CompletionRequest),)
