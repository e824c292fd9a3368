"""/v1/chat/completions: replies to a conversation, whole or as server-sent events.

Not here: bodies (serve.wire.chat), the stream itself (serve.streaming), generation (serve.models).
"""

from __future__ import annotations

import secrets
import time
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
from tunesmith.serve.wire.chat import ChatRequest, Envelope, parse_chat


async def chat_completions(request: Request, who: Who) -> Response:
    """Replies to a conversation. Errors before the first token are plain HTTP errors."""
    models: ServedModels = request.app.state.models
    chat = parse_chat(await read_bytes(request))
    at_hand = models.at_hand(chat.model)
    if at_hand and chat.is_plain:
        model, ask = at_hand, chat.ask
    else:  # a model may have to be loaded, and a grammar be made
        model, ask = await run_in_threadpool(lambda: (models.get(chat.model, owner=who.owner), chat.ask))
    id = f"chatcmpl-{secrets.token_hex(12)}"
    envelope = Envelope(id, int(time.time()), model, ask.tools, chat.most_calls, chat.logprobs)
    made = items_of(request, chat.model, asks=[ask], owner=who.owner)
    noted = partial(note_answer, request, sent=chat.to_keep, labels=chat.metadata)
    if not chat.stream:
        return await answer_whole(made, envelope.completion, noted=noted)

    async def events(made: Made) -> AsyncIterator[dict[str, Any]]:
        extra = {"usage": None} if chat.stream_options.include_usage else {}
        choices = []
        for index in range(chat.n):
            yield {**envelope.opening(index), **extra}
        async for item in made:
            if isinstance(item, Choice):
                choices.append(item)
                if len(choices) == chat.n:
                    await noted(envelope.completion(choices))
                for chunk in envelope.ending(item):
                    yield {**chunk, **extra}
            else:
                yield {**envelope.piece(item), **extra}
        if extra:
            yield envelope.usage_chunk(choices)

    return await answer_stream(request, made, events=events)


ROUTES = (Route("POST", "/v1/chat/completions", chat_completions, "inference", body=ChatRequest),)
