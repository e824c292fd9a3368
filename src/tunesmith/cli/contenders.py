"""What contenders of every command are put together of: training examples, indexes, kept replies.

Not here: the lines that name them (specs), models (generate). Called by the commands that ask contenders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.output import Output

if TYPE_CHECKING:
    from tunesmith.chat import Example
    from tunesmith.contender import Nearest, Parts, Retrieve
    from tunesmith.generate import Builder
    from tunesmith.retrieve.encoder import Encoder, Vectors

KEPT_FROM = 100  # texts; fewer are encoded in no time


def make_builder(output: Output, *, examples: Sequence[Example] = (), use_cache: bool = True) -> Builder:
    """Builds contenders whose few-shot examples are of `examples` and whose replies are kept, unless asked not to."""
    from tunesmith.generate import Builder

    return Builder(make_parts(output, examples=examples, use_cache=use_cache), say=output.say)


def make_parts(output: Output, *, examples: Sequence[Example] = (), use_cache: bool = True) -> Parts:
    from tunesmith.contender import Parts
    from tunesmith.evaluate.cache import ReplyCache

    parts = Parts(examples, search_texts, lambda docs, k: open_docs(output, Path(docs), k=k))
    return replace(parts, keep=ReplyCache.at_home().around) if use_cache else parts


def search_texts(texts: Sequence[str]) -> Nearest:
    """The search of few-shot examples: by words, and by meaning where the model for it is installed."""
    from tunesmith.retrieve.encoder import find_encoder
    from tunesmith.retrieve.nearest import nearest_texts

    encoder, _ = find_encoder("auto")
    return nearest_texts(texts, encoder=KeptVectors(encoder) if encoder else None)


class KeptVectors:
    """An encoder that keeps the vectors of a whole set of texts in the home folder: thousands take half a minute."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.name = encoder.name
        self.identity = encoder.identity

    def encode(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        from tunesmith.folders import home

        if len(texts) < KEPT_FROM:
            return self.encoder.encode(texts)
        key = hashlib.sha256(json.dumps([self.identity, *texts]).encode()).hexdigest()
        path = home() / "vectors" / f"{key[:32]}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            unfinished = path.with_name(f"{path.stem}.{os.getpid()}.npy.tmp")
            with unfinished.open("wb") as file:
                np.save(file, self.encoder.encode(texts))
            unfinished.replace(path)
        return np.asarray(np.load(path), dtype=np.float32)


def open_docs(output: Output, docs: Path, *, k: int) -> Retrieve:
    """The search of an index, or of documents, which are indexed in the home folder; only what changed is done again.

    Raises InputError: neither is there. DataError: documents that cannot be read.
    """
    from tunesmith.errors import InputError
    from tunesmith.folders import home
    from tunesmith.retrieve.encoder import find_encoder
    from tunesmith.retrieve.index import build_index
    from tunesmith.retrieve.search import open_index
    from tunesmith.retrieve.shelf import MANIFEST

    if not docs.exists():
        raise InputError(f"{docs} is neither an index nor documents.", "Give the folder of one of them.")
    if not (docs / MANIFEST).is_file():
        encoder, why = find_encoder("auto")
        kept = home() / "indexes" / hashlib.sha256(str(docs.resolve()).encode()).hexdigest()[:16]
        indexed = build_index(docs, kept, encoder=encoder)
        dense = f"{encoder.name}, {why}" if encoder else why
        output.say(f"{docs}: {indexed.manifest.passages:,} passages, {indexed.encoded:,} encoded now; dense: {dense}")
        docs = kept
    index = open_index(docs)
    index.retrieve("?", 1)  # what the first question loads is no part of a row's time
    return lambda question: index.retrieve(question, k)
