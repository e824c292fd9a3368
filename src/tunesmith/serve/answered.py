"""What is done with an answer once it is whole: its tokens are counted, and it is kept where the request asked for it.

Not here: keeping (records.completions), counting (serve.metrics), limits. Called by the routes that answer by a model,
for streams too. A server that keeps nothing (`tunesmith serve`) has no `keep` in its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from tunesmith.serve.access import Identity
from tunesmith.serve.metrics import Metrics

Keep = Callable[..., None]


class TokenLimits(Protocol):
    """What a key may use, as far as it is known only afterwards."""

    def spend_tokens(self, identity: Identity, tokens: int) -> None: ...


async def note_answer(
    request: Request, body: dict[str, Any], *, sent: Sequence[dict[str, Any]] | None, labels: dict[str, str] | None
) -> None:
    """`body` is the whole completion; `sent` are the messages of a request that said `store: true`, else None. Raises
    DatabaseError when it cannot be kept: an answer that was to be kept is not given as if it were."""
    usage = body["usage"]
    note_tokens(request, body["model"], prompt=usage["prompt_tokens"], completion=usage["completion_tokens"])
    keep: Keep | None = getattr(request.app.state, "keep", None)
    if keep and sent is not None:
        identity: Identity = request.state.identity
        await run_in_threadpool(keep, identity.owner, body, messages=sent, labels=labels)


def note_tokens(request: Request, model: str, *, prompt: int, completion: int = 0) -> None:
    """Count the tokens of an answer, and hold them against the limits of the key."""
    metrics: Metrics = request.app.state.metrics
    metrics.tokens(model, prompt=prompt, completion=completion)
    limits: TokenLimits | None = getattr(request.app.state, "limits", None)
    if limits:
        limits.spend_tokens(request.state.identity, prompt + completion)
