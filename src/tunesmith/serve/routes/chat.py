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

from tunesmith.serve.answered import keep_answer
from tunesmith.serve.reply import Choice
from tunesmith.serve.route import Route, Who
from tunesmith.serve.streaming import Made, answer_stream, answer_whole, items_of, model_of
from tunesmith.serve.wire.body import read_bytes
from tunesmith.serve.wire.chat import ChatRequest, Envelope, parse_chat


async def chat_completions(request: Request, who: Who) -> Response:
    """Replies to a conversation. Errors before the first token are plain HTTP errors."""
    chat = parse_chat(await read_bytes(request))
    model = await model_of(request, chat.model, owner=who.owner)
    ask = chat.ask if chat.is_plain else await run_in_threadpool(lambda: chat.ask)  # a grammar may have to be made
    id = f"chatcmpl-{secrets.token_hex(12)}"
    envelope = Envelope(id, int(time.time()), model, ask.tools, chat.most_calls, chat.logprobs)
    made = items_of(request, model, asks=[ask], owner=who.owner)
    keep = partial(keep_answer, request, sent=chat.to_keep, labels=chat.metadata)
    if not chat.stream:
        return await answer_whole(made, envelope.completion, keep=keep)

    async def events(made: Made) -> AsyncIterator[dict[str, Any]]:
        extra = {"usage": None} if chat.stream_options.include_usage else {}
        choices = []
        for index in range(chat.n):
            yield {**envelope.opening(index), **extra}
        async for item in made:
            if isinstance(item, Choice):
                choices.append(item)
                if len(choices) == chat.n:
                    await keep(envelope.completion(choices))
                for chunk in envelope.ending(item):
                    yield {**chunk, **extra}
            else:
                yield {**envelope.piece(item), **extra}
        if extra:
            yield envelope.usage_chunk(choices)

    return await answer_stream(request, made, events=events)


ROUTES = (Route("POST", "/v1/chat/completions", chat_completions, "inference", body=ChatRequest),)
