"""What is done with an answer: its tokens are counted however it ends, and a whole one is kept where that was asked.

Not here: keeping (records.completions), counting (serve.metrics), limits. Called by the routes that answer by a model,
for streams too. A server that keeps nothing (`tunesmith serve`) has no `keep` in its state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from tunesmith.serve.access import Identity
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.reply import Choice, Piece, Writer
from tunesmith.serve.scheduler import Job


class TokenLimits(Protocol):
    """What a key may use, as far as it is known only afterwards."""

    def spend_tokens(self, identity: Identity, tokens: int) -> None: ...


class Tally:
    """The tokens of one request's jobs: each prompt once, and its replies as far as they were made. `take` is called
    from the threads of an engine with all that they bring; `note` counts what there is, the first time."""

    def __init__(self, request: Request, model: str) -> None:
        self.request = request
        self.model = model
        self.jobs: Sequence[Job] = ()  # none of a request that was refused
        self._whole: dict[int, int] = {}  # tokens of the replies that have ended, by index
        self._texts: defaultdict[int, str] = defaultdict(str)  # of the others

    def take(self, item: Piece | Choice) -> None:
        if isinstance(item, Choice):
            self._whole[item.index] = item.reply.completion_tokens
        else:
            self._texts[item.index] += item.text

    def note(self) -> None:
        jobs, self.jobs = self.jobs, ()
        if jobs:
            writers = [writer for job in jobs for writer in job.writers]
            made = sum(self._made(writer, index) for index, writer in enumerate(writers))
            note_tokens(self.request, self.model, prompt=sum(len(job.ids) for job in jobs), completion=made)

    def _made(self, writer: Writer, index: int) -> int:
        """Tokens of a reply so far; those of its text where the engine sends no ids."""
        if index in self._whole:
            return self._whole[index]
        return len(writer.text.ids) or writer.renderer.count_tokens(self._texts[index])


async def keep_answer(
    request: Request, body: dict[str, Any], *, sent: Sequence[dict[str, Any]] | None, labels: dict[str, str] | None
) -> None:
    """`body` is the whole completion; `sent` are the messages of a request that said `store: true`, else None. Raises
    DatabaseError when it cannot be kept: an answer that was to be kept is not given as if it were."""
    keep: Callable[..., None] | None = getattr(request.app.state, "keep", None)
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
