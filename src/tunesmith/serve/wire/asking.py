"""What requests for text have in common on OpenAI's wire: sampling, stop strings, the number of replies, streaming.

Not here: messages (serve.wire.chat), plain prompts (serve.wire.completions).
A field that would change the reply and is not supported is refused by name; a harmless unknown one is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tunesmith.contender import Reply
from tunesmith.sampling import Sampling
from tunesmith.serve.wire.body import parse_json
from tunesmith.serve.wire.errors import RequestError

COLDEST = 1e-4  # below this temperature the division overflows; the reply is the greedy one
MOST_REPLIES = 32

# Fields that would change the reply, with the values under which they would not. null and absent are the same.
Neutral = Mapping[str, tuple[object, ...]]
UNSUPPORTED: Neutral = {"min_p": (0,), "repetition_penalty": (1,), "top_k": (0, -1)}


def is_whole(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(stop: object) -> object:
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, list) and "" in stops:
        raise ValueError("a stop string cannot be empty")
    return stops


def _biases(given: object) -> object:
    """{"50256": -100} -> ((50256, -100.0),)"""
    if not isinstance(given, dict):
        raise ValueError("should be an object of token ids and biases")
    biases = []
    for token, bias in given.items():
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10):
            raise ValueError(f"{token!r} is no token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {token} should be a number from -100 to 100")
        biases.append((int(token), float(bias)))
    return tuple(biases)


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asking(BaseModel):
    """The fields that are read. temperature is 0 by default, not OpenAI's 1: what answers is what was measured."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[tuple[tuple[int, float], ...], BeforeValidator(_biases)] = ()
    n: int = Field(1, ge=1, le=MOST_REPLIES)
    max_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[str], BeforeValidator(_listed), Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def sampling(self, top_logprobs: int | None) -> Sampling:
        greedy = self.temperature < COLDEST or self.top_p == 0
        return Sampling(
            temperature=0.0 if greedy else self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            top_logprobs=top_logprobs,
        )


def read_object(body: bytes, unsupported: Neutral) -> dict[str, Any]:
    """The body's fields that are not null. Raises RequestError (400) for what is no JSON object, and for a field that
    is not supported."""
    values = parse_json(body)
    if not isinstance(values, dict):
        raise RequestError("The body is no JSON object.")
    values = {key: value for key, value in values.items() if value is not None}
    for name, neutral in {**UNSUPPORTED, **unsupported}.items():
        if name in values and values[name] not in neutral:
            raise unsupported_field(name)
    return values


def unsupported_field(name: str) -> RequestError:
    return RequestError(
        f"'{name}' is not supported by this server; leave it out.", param=name, code="unsupported_parameter"
    )


def usage_of(replies: list[Reply]) -> dict[str, int]:
    """The prompt is counted once, however many replies it got."""
    prompt, made = replies[0].prompt_tokens, sum(reply.completion_tokens for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
