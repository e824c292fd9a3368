"""The nearest of a few thousand texts that are in memory: few-shot examples for a question, without an index on disk.

Not here: documents and passages (index, search).
Called by commands that build few-shot contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.retrieve.encoder import Encoder
from tunesmith.retrieve.index import count_terms
from tunesmith.retrieve.search import DEPTH, by_terms, order, standings
from tunesmith.retrieve.terms import detect_language, make_terms

Nearest = Callable[[str, int], list[int]]


def nearest_texts(texts: Sequence[str], *, encoder: Encoder | None = None) -> Nearest:
    """A function (question, k) -> positions of the k nearest texts, best first; fewer where no word is shared and there
    is no encoder. The texts are encoded once, now."""
    terms = make_terms(detect_language(texts))
    counts = count_terms([terms(text) for text in texts])
    vectors_ND = encoder.encode(texts) if encoder else None

    def nearest(question: str, k: int) -> list[int]:
        depth = max(DEPTH, k)
        legs = {"bm25": by_terms(counts, terms(question), depth=depth, rows=len(texts))}
        if encoder and vectors_ND is not None:
            legs["dense"] = standings(vectors_ND @ encoder.encode([question])[0], depth=depth)
        return order(legs)[:k]

    return nearest
