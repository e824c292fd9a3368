"""OpenAI's wire format for plain completions: a request body -> Asks, and replies and chunks as bodies.

Not here: routes (serve.routes), the fields of all requests for text (serve.wire.asking).
A plain text has the ids that it has in training: control tokens written in it stay text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from tunesmith.chat import Example, Message
from tunesmith.model import Base
from tunesmith.sampling import Token
from tunesmith.serve.models import ServedModel
from tunesmith.serve.reply import Ask, Choice
from tunesmith.serve.tokens import TokenBytes
from tunesmith.serve.wire.asking import Asking, Neutral, is_whole, read_object, usage_of
from tunesmith.serve.wire.errors import RequestError, problems_error

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MOST_PROMPTS = 128
UNSUPPORTED: Neutral = {"suffix": ("",)}

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
    """As Asking."""

    prompt: Annotated[Prompts, BeforeValidator(_prompts)]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = Field(None, ge=1)

    def asks(self, base: Base) -> list[Ask]:
        """One for each prompt."""
        return [
            Ask(
                ids=_ids(base, prompt),
                max_new_tokens=self.max_tokens or DEFAULT_MAX_TOKENS,
                sampling=self.sampling(self.logprobs),
                stop=tuple(self.stop),
                n=self.n,
                pieces=self.stream,
            )
            for prompt in self.prompt
        ]


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises RequestError (400) with every problem of the body, and the first one's field as `param`."""
    try:
        asked = CompletionRequest.model_validate(read_object(body, UNSUPPORTED))
    except ValidationError as error:
        raise problems_error(error) from error
    if asked.best_of not in (None, asked.n):
        raise RequestError("'best_of' other than 'n' is not supported.", param="best_of", code="unsupported_parameter")
    if asked.echo and asked.logprobs is not None:
        raise RequestError(
            "'echo' with 'logprobs' is not supported: log-probabilities of a prompt are not told.",
            param="echo",
            code="unsupported_parameter",
        )
    return asked


def _ids(base: Base, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(prompt, tuple):
        return prompt
    return base.renderer.render(Example((Message("text", prompt, trained=True),))).ids[:-1]


@dataclass(frozen=True, slots=True)
class TextEnvelope:
    """What the reply and all chunks of one completion have in common."""

    id: str
    created: int
    model: ServedModel
    asked: CompletionRequest

    def completion(self, choices: Sequence[Choice]) -> dict[str, Any]:
        choices = sorted(choices, key=lambda choice: choice.index)
        bodies = [
            self._choice(
                choice.index,
                self.echoed(choice.index) + choice.reply.text,
                tokens=choice.tokens,
                reason=choice.reply.finish_reason,
            )
            for choice in choices
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

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        """Of all prompts, each counted once."""
        of_prompts = [
            usage_of([choice.reply for choice in choices if choice.index // self.asked.n == number])
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

        texts = [text_of(token.id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{text_of(other): logprob for other, logprob in token.top} for token in tokens],
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
