"""OpenAI's wire format for plain completions: a request body -> Asks, and replies and chunks as bodies.

Not here: routes (serve.routes), the fields of all requests for text (serve.wire.asking).
A plain text has the ids that it has in training: control tokens written in it stay text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from tunesmith.chat import Example, Message
from tunesmith.model import Base
from tunesmith.sampling import Token
from tunesmith.serve.models import ServedModel
from tunesmith.serve.reply import Ask, Choice
from tunesmith.serve.tokens import TokenBytes
from tunesmith.serve.wire.asking import MOST_REPLIES, Asking, is_whole, read_object, usage_of
from tunesmith.serve.wire.errors import RequestError, problems_error

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MOST_PROMPTS = 128
NO_SUFFIX = (
    "'suffix' is not supported by this server: its models go on with a text, and were not trained to fill a gap. "
    "Leave it out."
)

Prompts = tuple[str | tuple[int, ...], ...]


def _prompts(given: object) -> Prompts:
    """A text, several, token ids, or several lists of them -> several."""
    prompts = given if isinstance(given, list) else [given]
    if prompts and all(isinstance(item, int) for item in prompts):
        prompts = [prompts]
    found: list[str | tuple[int, ...]] = []
    for prompt in prompts:
        if isinstance(prompt, str) and is_whole(prompt):
            found.append(prompt)
        elif isinstance(prompt, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
            found.append(tuple(prompt))
        else:
            raise ValueError("should be a text, a list of texts, a list of token ids, or a list of such lists")
    if not 1 <= len(found) <= MOST_PROMPTS or not all(found):
        raise ValueError(f"should be 1 to {MOST_PROMPTS} prompts, none of them empty")
    return tuple(found)


class CompletionRequest(Asking):
    """As Asking. max_tokens 0 with `echo` makes no text: the prompt comes back, with its log-probabilities if they are
    asked for. Of `best_of` replies the `n` likeliest by the mean of their tokens' log-probabilities come back."""

    prompt: Annotated[Prompts, BeforeValidator(_prompts)]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=MOST_REPLIES)

    @property
    def made(self) -> int:
        """Replies to each prompt that are made, of which `n` come back."""
        return self.best_of or self.n

    def asks(self, base: Base) -> list[Ask]:
        """One for each prompt."""
        wanted = 0 if self.logprobs is None and self.made > self.n else self.logprobs
        return [
            Ask(
                ids=_ids(base, prompt),
                max_new_tokens=self.max_tokens or DEFAULT_MAX_TOKENS,
                sampling=self.sampling(wanted),
                stop=tuple(self.stop),
                n=self.made,
                pieces=self.stream,
            )
            for prompt in self.prompt
        ]


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises RequestError (400) with every problem of the body, and the first one's field as `param`."""
    try:
        values = read_object(body, {})
        if values.pop("suffix", ""):
            raise RequestError(NO_SUFFIX, param="suffix", code="unsupported_parameter")
        asked = CompletionRequest.model_validate(values)
    except ValidationError as error:
        raise problems_error(error) from error
    if asked.made < asked.n:
        raise RequestError(f"'best_of' {asked.best_of} replies are fewer than 'n'.", param="best_of")
    if asked.stream and asked.made > asked.n:
        raise RequestError("'best_of' above 'n' cannot be streamed: the best is known at the end.", param="best_of")
    if asked.max_tokens == 0 and not asked.echo:
        raise RequestError("'max_tokens' 0 makes no text. Ask for some, or for the prompt: 'echo'.", param="max_tokens")
    return asked


def _ids(base: Base, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(prompt, tuple):
        return prompt
    return base.renderer.render(Example((Message("text", prompt, trained=True),))).ids[:-1]


def likeliest(choices: Sequence[Choice], asked: CompletionRequest) -> list[Choice]:
    """In order, where all that were made come back. Else the best to each prompt, best first and numbered anew: of
    equals the earlier, and one without a token last."""
    choices = sorted(choices, key=lambda choice: choice.index)
    if asked.made == asked.n:
        return choices

    def mean(choice: Choice) -> float:
        logprobs = [token.logprob or 0.0 for token in choice.tokens]
        return sum(logprobs) / len(logprobs) if logprobs else -math.inf

    by_prompt: dict[int, list[Choice]] = {}
    for choice in choices:
        by_prompt.setdefault(choice.index // asked.made, []).append(choice)
    best = [sorted(made, key=mean, reverse=True)[: asked.n] for made in by_prompt.values()]
    return [replace(choice, index=index) for index, choice in enumerate(chain.from_iterable(best))]


@dataclass(frozen=True, slots=True)
class TextEnvelope:
    """What the reply and all chunks of one completion have in common. `told` holds each prompt's tokens, where their
    log-probabilities are wanted."""

    id: str
    created: int
    model: ServedModel
    asked: CompletionRequest
    told: Sequence[Sequence[Token]] = ()

    def completion(self, choices: Sequence[Choice]) -> dict[str, Any]:
        bodies = [
            self._choice(
                choice.index,
                self.echoed(choice.index) + choice.reply.text,
                tokens=[*self.echoed_tokens(choice.index), *choice.tokens],
                reason=choice.reply.finish_reason,
            )
            for choice in likeliest(choices, self.asked)
        ]
        return {**self._head(), "choices": bodies, "usage": self.usage(choices)}

    def chunk(
        self, index: int, text: str, *, tokens: Sequence[Token] = (), offset: int = 0, reason: str | None = None
    ) -> dict[str, Any]:
        return {**self._head(), "choices": [self._choice(index, text, tokens=tokens, offset=offset, reason=reason)]}

    def usage_chunk(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return {**self._head(), "choices": [], "usage": self.usage(choices)}

    def echoed(self, index: int) -> str:
        """The prompt of the reply with this index, where it is asked for."""
        if not self.asked.echo:
            return ""
        prompt = self.asked.prompt[index // self.asked.n]
        return prompt if isinstance(prompt, str) else self.model.base.renderer.decode(prompt)

    def echoed_tokens(self, index: int) -> Sequence[Token]:
        """Its tokens, where log-probabilities are wanted beside it."""
        return self.told[index // self.asked.n] if self.told else ()

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """Of all prompts, each counted once, and of all replies that were made."""
        of_prompts = [
            usage_of([choice.reply for choice in choices if choice.index // self.asked.made == number])
            for number in range(len(self.asked.prompt))
        ]
        return {name: sum(usage[name] for usage in of_prompts) for name in of_prompts[0]}

    def _choice(
        self, index: int, text: str, *, tokens: Sequence[Token], offset: int = 0, reason: str | None
    ) -> dict[str, Any]:
        told = self._told(tokens, offset) if self.asked.logprobs is not None and (tokens or reason is None) else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def _told(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        known = TokenBytes(self.model.base.renderer.tokenizer)

        def text_of(token: int) -> str:
            return known.of(token).decode(errors="replace")

        def top_of(token: Token) -> dict[str, float] | None:
            """Of those that read alike, such as halves of characters, the likeliest."""
            return None if token.logprob is None else {text_of(other): value for other, value in reversed(token.top)}

        texts = [text_of(token.id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [top_of(token) for token in tokens],
            "text_offset": [offset + sum(map(len, texts[:place])) for place in range(len(texts))],
        }

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
        }
