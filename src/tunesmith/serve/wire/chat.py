"""OpenAI's wire format for chat: a request body -> Ask, and replies, chunks and models as bodies.

Not here: routes (serve.routes), errors (serve.wire.errors), generation (serve.reply).
A field that would change the reply and is not supported is refused by name; a harmless unknown one is ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.generate import Sampling
from tunesmith.serve.models import ServedModel
from tunesmith.serve.reply import Ask
from tunesmith.serve.wire.errors import RequestError, problems_error

# Fields that would change the reply, with the values under which they would not. null and absent are the same.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "top_logprobs": (0,),
    "web_search_options": (),
}
COLDEST = 1e-4  # below this temperature the division overflows; the reply is the greedy one


def _joined(content: object) -> object:
    """A text, or the texts of a list of text parts."""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("only text parts are supported: {'type': 'text', 'text': ...}")
        content = "".join(part for part in parts if isinstance(part, str))
    if isinstance(content, str) and not _is_whole(content):
        raise ValueError("holds half of a character (a lone surrogate)")
    return content


def _listed(stop: object) -> object:
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, list) and "" in stops:
        raise ValueError("a stop string cannot be empty")
    return stops


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields that are read. temperature is 0 by default, not OpenAI's 1: what answers is what was measured."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Annotated[list[str], BeforeValidator(_listed), Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def ask(self) -> Ask:
        greedy = self.temperature < COLDEST or self.top_p == 0
        return Ask(
            messages=tuple(Message(message.role, message.content) for message in self.messages),
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            sampling=Sampling(0.0 if greedy else self.temperature, self.top_p, self.seed),
            stop=tuple(self.stop),
        )


def parse_chat(body: bytes) -> ChatRequest:
    """Raises RequestError (400) with every problem of the body, and the first one's field as `param`."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise RequestError("The body is no JSON object.")
    values = {key: value for key, value in values.items() if value is not None}
    for name, neutral in UNSUPPORTED.items():
        if name in values and values[name] not in neutral:
            raise RequestError(
                f"'{name}' is not supported by this server; leave it out.", param=name, code="unsupported_parameter"
            )
    for index, message in enumerate(values["messages"] if isinstance(values.get("messages"), list) else []):
        if isinstance(message, dict) and message.get("tool_calls"):
            param = f"messages[{index}].tool_calls"
            raise RequestError(f"'{param}' is not supported by this server.", param=param, code="unsupported_parameter")
    try:
        return ChatRequest.model_validate(values)
    except ValidationError as error:
        raise problems_error(error) from error


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the reply and all chunks of one completion have in common."""

    id: str
    created: int
    model: ServedModel

    def completion(self, reply: Reply) -> dict[str, Any]:
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply)}

    def chunk(self, delta: dict[str, str], *, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, reply: Reply) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(reply)}

    def _head(self, kind: str) -> dict[str, Any]:
        model = self.model
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }


def usage(reply: Reply) -> dict[str, int]:
    total = reply.prompt_tokens + reply.completion_tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens, "total_tokens": total}


def model_body(model: ServedModel) -> dict[str, Any]:
    """OpenAI's model object, and the pins of what answers under this name."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tunesmith",
        "base": model.base.name,
        "base_sha256": model.base.sha256,
        "adapter_sha256": model.adapter_sha256,
    }
