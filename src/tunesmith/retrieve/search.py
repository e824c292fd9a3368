"""The passages nearest to a question: BM25 and dense vectors, put together by the reciprocals of their ranks.

Not here: how an index comes about (index), and what is done with the passages.
Called by the command `search` and, through `open_index`, by whatever answers with passages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.contender import Passage
from tunesmith.errors import InputError, RunError
from tunesmith.retrieve import shelf
from tunesmith.retrieve.encoder import Encoder, SentenceEncoder, find_encoder
from tunesmith.retrieve.shelf import Manifest
from tunesmith.retrieve.terms import make_terms

DEPTH = 100  # passages of each leg that are put together
# Chosen by the mean MRR of two sets that are not in the report; docs/retrieve.md has the table.
RRF_K = 1
DENSE_WEIGHT = 0.5  # of the dense leg, against 1 of BM25

COLUMNS = ["number", "text", "file", "document", "titles", "page", "question"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one leg sees a passage: rank from 1, and the leg's own score (BM25, or the cosine)."""

    rank: int
    score: float


Legs = Mapping[str, Mapping[int, Standing]]  # "bm25" and, with vectors, "dense"


@dataclass(frozen=True, slots=True)
class Found:
    """A passage, and how it was found. `score` is that of the fusion; a leg that did not find it is None."""

    number: int
    text: str
    file: str
    document: str
    titles: tuple[str, ...]
    page: int | None
    question: str  # of a training example
    score: float
    bm25: Standing | None
    dense: Standing | None

    @property
    def source(self) -> str:
        page = f", page {self.page}" if self.page else ""
        return " > ".join((self.document, *self.titles)) + page


def open_index(path: str | Path, *, encoder: Encoder | None = None) -> Index:
    """The index in a folder; `encoder` instead of the model it was made with must give the same vectors.

    Raises InputError: no index is there. The dense model is loaded with the first question.
    """
    directory = Path(path)
    return Index(directory, shelf.read_manifest(directory), encoder)


class Index:
    """An open index; it stays the same while another process indexes anew."""

    def __init__(self, directory: Path, manifest: Manifest, encoder: Encoder | None) -> None:
        self.directory, self.manifest, self._given = directory, manifest, encoder

    def retrieve(self, question: str, k: int = 5) -> list[Passage]:
        """The k best passages, best first. Raises InputError for k below 1."""
        return self.retrieve_batch([question], k)[0]

    def retrieve_batch(self, questions: Sequence[str], k: int = 5) -> list[list[Passage]]:
        """The same for many questions, which are encoded together."""
        return [
            [Passage(text=found.text, source=found.source, score=found.score) for found in best]
            for best in self.search(questions, k)
        ]

    def search(self, questions: Sequence[str], k: int = 5) -> list[list[Found]]:
        """The k best passages for each question, with what each leg says. Raises InputError for k below 1."""
        if k < 1:
            raise InputError(f"k is {k}.", "Ask for one passage or more.")
        return [self._load(legs, order(legs)[:k]) for legs in self.find(questions, depth=max(DEPTH, k))]

    def find(self, questions: Sequence[str], *, depth: int = DEPTH) -> list[Legs]:
        """What each leg finds for each question: passage numbers with their standing, best first."""
        by_terms = self._by_terms(questions, depth)
        if not self.manifest.dense:
            return [{"bm25": one} for one in by_terms]
        by_vectors = self._by_vectors(questions, depth)
        return [{"bm25": one, "dense": other} for one, other in zip(by_terms, by_vectors, strict=True)]

    @cached_property
    def documents(self) -> list[str]:
        """The document of each passage, by the passage's number."""
        rows = self._table.search().select(["number", "document"]).limit(None).to_arrow().sort_by("number")
        documents: list[str] = rows["document"].to_pylist()
        return documents

    # -- legs: for each question, the standing of the passages that were found, best first ---------------------------

    def _by_terms(self, questions: Sequence[str], depth: int) -> list[dict[int, Standing]]:
        rows = self.manifest.passages
        return [by_terms(self._counts, self._terms(question), depth=depth, rows=rows) for question in questions]

    def _by_vectors(self, questions: Sequence[str], depth: int) -> list[dict[int, Standing]]:
        """Exact search, by cosine. LanceDB answers a batch of questions in one pass over the vectors."""
        vectors = list(self._encoder.encode(questions))
        if not vectors:
            return []
        query = self._table.search(vectors).distance_type("cosine").limit(depth)
        hits = query.select(["number", "_distance"]).to_arrow()
        rows = hits["query_index"].to_pylist() if len(vectors) > 1 else [0] * hits.num_rows
        found: list[list[tuple[float, int]]] = [[] for _ in questions]
        for row, number, distance in zip(rows, hits["number"].to_pylist(), hits["_distance"].to_pylist(), strict=True):
            found[row].append((distance, number))
        return [
            {number: Standing(rank, 1 - distance) for rank, (distance, number) in enumerate(sorted(one), start=1)}
            for one in found
        ]

    def _load(self, legs: Legs, numbers: Sequence[int]) -> list[Found]:
        if not numbers:
            return []
        fused = fuse(legs)
        rows = {row["number"]: row for row in self._table.take_offsets(numbers).select(COLUMNS).to_arrow().to_pylist()}
        return [
            Found(
                **{**rows[number], "titles": tuple(rows[number]["titles"])},
                score=fused[number],
                bm25=legs["bm25"].get(number),
                dense=legs.get("dense", {}).get(number),
            )
            for number in numbers
        ]

    # -- what is loaded when it is needed ----------------------------------------------------------------------------

    @cached_property
    def _generation(self) -> Path:
        return self.directory / self.manifest.generation

    @cached_property
    def _table(self) -> Any:
        return shelf.open_table(self._generation, shelf.PASSAGES)

    @cached_property
    def _counts(self) -> Any:
        import bm25s

        try:
            return bm25s.BM25.load(self._generation / shelf.BM25, show_progress=False)
        except (OSError, ValueError) as error:
            what = f"The index in {self.directory} is damaged: {error}."
            raise RunError(what, "Remove the folder and index again.") from error

    @cached_property
    def _terms(self) -> Callable[[str], list[str]]:
        return make_terms(self.manifest.language)

    @cached_property
    def _encoder(self) -> Encoder:
        """The model that the index was made with, wherever it lies now. Raises InputError when it is another."""
        dense = self.manifest.dense
        assert dense
        encoder = self._given or (SentenceEncoder(Path(dense.folder)) if Path(dense.folder).is_dir() else None)
        encoder = encoder or find_encoder("auto")[0]
        if encoder is None or encoder.identity != dense.identity:
            what = f"The index in {self.directory} was made with the dense model {dense.name}, which is not here now."
            raise InputError(what, "Index again; texts that have not changed are encoded anew.")
        return encoder


def by_terms(counts: Any, terms: Sequence[str], *, depth: int, rows: int) -> dict[int, Standing]:
    """The rows that hold one of the terms, by BM25; `counts` is bm25s's index."""
    known = [term for term in terms if term in counts.vocab_dict]
    scores_N = counts.get_scores(known) if known else np.zeros(rows, np.float32)
    found = standings(scores_N, depth=depth)
    return {number: standing for number, standing in found.items() if standing.score > 0}


def standings(scores_N: NDArray[np.float32], *, depth: int) -> dict[int, Standing]:
    """The best `depth` rows by their scores, of equal ones the first."""
    best = np.argsort(-scores_N, kind="stable")[:depth]
    return {int(number): Standing(rank, float(scores_N[number])) for rank, number in enumerate(best, start=1)}


def fuse(legs: Legs) -> dict[int, float]:
    """Reciprocal rank fusion: the sum over legs of weight / (k + rank) (Cormack, Clarke & Büttcher 2009, SIGIR)."""
    scores: dict[int, float] = {}
    for name, found in legs.items():
        weight = DENSE_WEIGHT if name == "dense" else 1.0
        for number, standing in found.items():
            scores[number] = scores.get(number, 0.0) + weight / (RRF_K + standing.rank)
    return scores


def order(legs: Legs) -> list[int]:
    """Passage numbers by the fusion, best first; of equal ones the first in the documents."""
    scores = fuse(legs)
    return sorted(scores, key=lambda number: (-scores[number], number))
