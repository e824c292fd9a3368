"""OpenAI's embeddings as bodies.

Not here: the model (retrieve, through the surface), the route.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field

from tunesmith.serve.wire.body import Wire

MAX_TEXTS = 2048


class Vector(Protocol):
    """A row of a float32 array."""

    def tolist(self) -> list[float]: ...
    def astype(self, kind: str) -> Any: ...


class EmbeddingModel(Protocol):
    """`window`: tokens of a text that it reads."""

    name: str

    @property
    def window(self) -> int: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    def encode(self, texts: Sequence[str]) -> Any:
        """float32 [N texts, D], each of length 1."""
        ...


class EmbeddingRequest(Wire):
    """Token ids are those of some tokenizer that this server cannot know, and are refused."""

    model: str
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[int], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def written(vector: Vector, encoding: str) -> list[float] | str:
    """A list of numbers, or little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()


def embedding_model_body(model: EmbeddingModel) -> dict[str, Any]:
    """As an entry of /v1/models."""
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "tunesmith"}
