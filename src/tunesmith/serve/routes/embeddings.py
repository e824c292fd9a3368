"""/v1/embeddings: vectors of texts, by the model that the surface brought as `app.state.encoder`.

Not here: the model (retrieve). A text longer than the model reads is refused, never cut.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request

from tunesmith.serve.answered import note_tokens
from tunesmith.serve.route import Route
from tunesmith.serve.wire.body import json_body
from tunesmith.serve.wire.embeddings import (
    Embedding,
    EmbeddingList,
    EmbeddingModel,
    EmbeddingRequest,
    EmbeddingUsage,
    written,
)
from tunesmith.serve.wire.errors import RequestError

INSTALL = "pip install 'tunesmith[rag]'"


def create_embeddings(
    request: Request, wanted: Annotated[EmbeddingRequest, json_body(EmbeddingRequest)]
) -> dict[str, Any]:
    encoder = _encoder(request.app.state.encoder, wanted.model)
    texts = _texts(wanted)
    counts = encoder.count_tokens(texts)
    for index, count in enumerate(counts):
        if count > encoder.window:
            message = f"Text {index} has {count} tokens, and {encoder.name} reads {encoder.window}: send it in parts."
            raise RequestError(message, param="input", code="context_length_exceeded")
    vectors = encoder.encode(texts)
    if wanted.dimensions not in (None, vectors.shape[1]):
        raise RequestError(f"{encoder.name} has {vectors.shape[1]} dimensions, no others.", param="dimensions")
    data = [
        Embedding(index=index, embedding=written(vector, wanted.encoding_format))
        for index, vector in enumerate(vectors)
    ]
    note_tokens(request, encoder.name, prompt=sum(counts))
    usage = EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts))
    return EmbeddingList(data=data, model=encoder.name, usage=usage).model_dump()


def _encoder(encoder: EmbeddingModel | None, name: str) -> EmbeddingModel:
    if encoder is None:
        message = f"This server has no embedding model: {INSTALL}, then start it again."
    elif encoder.name != name:
        message = f"There is no embedding model {name!r} here; the one there is: {encoder.name}."
    else:
        return encoder
    raise RequestError(message, param="model", code="model_not_found", status=404)


def _texts(wanted: EmbeddingRequest) -> list[str]:
    given = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) != len(given):
        message = (
            "Token ids belong to a tokenizer that this server does not have: send texts. "
            "(langchain's OpenAIEmbeddings sends texts with check_embedding_ctx_length=False.)"
        )
        raise RequestError(message, param="input", code="token_ids_not_supported")
    return texts


ROUTES = (Route("POST", "/v1/embeddings", create_embeddings, "inference", body=EmbeddingRequest, answer=EmbeddingList),)
