"""OpenAI's wire format for chat: a request body -> Ask, and replies, chunks and models as bodies.

Not here: routes (serve.routes), errors (serve.wire.errors), the fields of all requests for text (serve.wire.asking).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo

from tunesmith.chat import Message
from tunesmith.sampling import Token
from tunesmith.serve.grammar import ANY_OBJECT, json_grammar
from tunesmith.serve.models import ServedModel
from tunesmith.serve.reply import Ask, Choice, Piece
from tunesmith.serve.tokens import TokenBytes
from tunesmith.serve.tools import read_calls
from tunesmith.serve.wire.asking import Asking, Neutral, is_whole, read_object, unsupported_field, usage_of
from tunesmith.serve.wire.errors import RequestError, problems_error
from tunesmith.serve.wire.metadata import Metadata
from tunesmith.serve.wire.tool_choice import ToolChoice, calls_of, offered
from tunesmith.turns import ToolCall, order_problems, parse_calls, parse_tools

UNSUPPORTED: Neutral = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
}


def _joined(content: object) -> object:
    """A text, or the texts of a list of text parts."""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("only text parts are supported: {'type': 'text', 'text': ...}")
        content = "".join(part for part in parts if isinstance(part, str))
    if isinstance(content, str) and not is_whole(content):
        raise ValueError("holds half of a character (a lone surrogate)")
    return content


def _calls(raw: object, info: ValidationInfo) -> tuple[ToolCall, ...]:
    if raw and info.data.get("role") not in ("assistant", None):
        raise ValueError("only assistants call tools")
    calls, problems = parse_calls(raw, "this turn")
    if problems:
        raise ValueError(f"{problems[0].what} {problems[0].todo}")
    return calls


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_joined)]
    tool_calls: Annotated[Any, BeforeValidator(_calls)] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def message(self) -> Message:
        name = self.name if self.role == "tool" else None  # of others it is a label that templates do not write
        return Message(self.role, self.content, tool_calls=self.tool_calls, tool_call_id=self.tool_call_id, name=name)


class JsonSchema(BaseModel):
    """`strict` makes no difference: the reply keeps to the schema."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    name: str = "reply"
    values: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @property
    def schema_of_reply(self) -> Mapping[str, Any] | None:
        """None for a plain text. Raises RequestError where the schema is missing."""
        if self.type != "json_schema":
            return None if self.type == "text" else ANY_OBJECT
        if self.json_schema is None:
            raise RequestError("'response_format' of type json_schema has no 'json_schema'.", param="response_format")
        return self.json_schema.values


class ChatRequest(Asking):
    """As Asking; `ask` is what it comes down to."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[dict[str, Any]] = []
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    store: bool = False
    metadata: Metadata | None = None
    _sent: list[Any] = PrivateAttr(default_factory=list)

    @property
    def to_keep(self) -> list[dict[str, Any]] | None:
        """The messages as they came, where the request asked to keep them."""
        return self._sent if self.store else None

    @property
    def most_calls(self) -> int | None:
        """How many calls a reply may make; None: as many as it likes."""
        return 1 if isinstance(self.tool_choice, tuple) or not self.parallel_tool_calls else None

    @property
    def is_plain(self) -> bool:
        """Whether any text will do as a reply."""
        return not self.tools and self.response_format.type == "text"

    @property
    def ask(self) -> Ask:
        """Raises RequestError for results without calls, tools that are none or are not there, and a schema that
        cannot be kept to."""
        given, problems = parse_tools(self.tools)
        if problems:
            raise RequestError(f"{problems[0].what} {problems[0].todo}", param="tools")
        tools, choice = offered(given, self.tool_choice)
        messages = tuple(message.message for message in self.messages)
        for problem in order_problems(messages, ()):
            raise RequestError(f"{problem.what} {problem.todo}", param="messages")
        schema = self.response_format.schema_of_reply
        calls = calls_of(tools, choice, parallel=self.parallel_tool_calls, schema=schema)
        return Ask(
            messages=messages,
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            sampling=self.sampling(self.top_logprobs if self.logprobs else None),
            stop=tuple(self.stop),
            n=self.n,
            tools=tools,
            constrain=calls or (None if schema is None else json_grammar(schema)),
            pieces=self.stream and not tools,  # whether a text is a call is seen at its end
        )


def parse_chat(body: bytes) -> ChatRequest:
    """Raises RequestError (400) with every problem of the body, and the first one's field as `param`."""
    values = read_object(body, UNSUPPORTED)
    for message in values["messages"] if isinstance(values.get("messages"), list) else []:
        if isinstance(message, dict):
            if message.get("tool_calls") and message.get("content") is None:
                message["content"] = ""
            for name in [name for name in ("tool_calls", "tool_call_id", "name") if message.get(name, ...) is None]:
                del message[name]
            if message.get("function_call"):
                raise unsupported_field("function_call")
    try:
        chat = ChatRequest.model_validate(values)
    except ValidationError as error:
        raise problems_error(error) from error
    if chat.top_logprobs and not chat.logprobs:
        raise RequestError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    chat._sent = values["messages"]
    return chat


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the reply and all chunks of one completion have in common."""

    id: str
    created: int
    model: ServedModel
    tools: tuple[Any, ...] = ()
    most_calls: int | None = None
    logprobs: bool = False

    def completion(self, choices: Sequence[Choice]) -> dict[str, Any]:
        bodies = []
        for choice in sorted(choices, key=lambda choice: choice.index):
            message, reason = self._message(choice)
            body = {"index": choice.index, "message": message, "logprobs": self._told(choice.tokens)}
            bodies.append({**body, "finish_reason": reason})
        usage = usage_of([choice.reply for choice in choices])
        return {**self._head("chat.completion"), "choices": bodies, "usage": usage}

    def opening(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> dict[str, Any]:
        return self._chunk(piece.index, {"content": piece.text}, tokens=piece.tokens)

    def ending(self, choice: Choice) -> list[dict[str, Any]]:
        """The last chunks of a choice: where tools were offered its text or calls, and the reason of its end."""
        chunks = []
        message, reason = self._message(choice)
        if self.tools:
            calls = [{"index": place, **call} for place, call in enumerate(message.get("tool_calls", ()))]
            if message["content"]:
                chunks.append(self._chunk(choice.index, {"content": message["content"]}, tokens=choice.tokens))
            if calls:
                chunks.append(self._chunk(choice.index, {"tool_calls": calls}))
        return [*chunks, self._chunk(choice.index, {}, reason=reason)]

    def usage_chunk(self, choices: Sequence[Choice]) -> dict[str, Any]:
        usage = usage_of([choice.reply for choice in choices])
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _message(self, choice: Choice) -> tuple[dict[str, Any], str]:
        reply = choice.reply
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if self.tools:
            text, calls = read_calls(reply.text, self.tools)
            if calls and len(calls) <= (self.most_calls or len(calls)):  # a text of more only looks like calls
                message |= {"content": text or None, "tool_calls": [call.as_dict() for call in calls]}
                return message, "tool_calls"
        return message, reply.finish_reason

    def _chunk(
        self, index: int, delta: dict[str, Any], *, tokens: Sequence[Token] = (), reason: str | None = None
    ) -> dict[str, Any]:
        told = self._told(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _told(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        known = TokenBytes(self.model.base.renderer.tokenizer)

        def told(token: int, logprob: float | None) -> dict[str, Any]:
            of = known.of(token)
            return {"token": of.decode(errors="replace"), "logprob": logprob, "bytes": list(of)}

        content = [
            {**told(token.id, token.logprob), "top_logprobs": [told(*other) for other in token.top]} for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _head(self, kind: str) -> dict[str, Any]:
        model = self.model
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }


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
