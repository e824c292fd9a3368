"""How well `tunesmith search` finds the right document, against BM25 alone (bm25s) and plain dense search
(sentence-transformers), each at its defaults on whole documents.

Not here: how fast. Run: `python benchmarks/retrieval_quality.py [FOLDER] [--words 180]`; the folder holds docs.jsonl
(doc_id, title, text) and questions.jsonl (doc_id, question, and question_XX in other languages).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.evaluate.stats import mean_interval
from tunesmith.retrieve.encoder import find_encoder
from tunesmith.retrieve.index import build_index
from tunesmith.retrieve.recall import measures, ranks, read_questions
from tunesmith.retrieve.search import open_index
from tunesmith.retrieve.shelf import Settings

FOLDER = Path(__file__).parent / "data" / "xquad_rag_a"
DEPTH = 50
Ranks = list[int | None]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rank_of(found: Sequence[int], right: int) -> int | None:
    return next((rank for rank, one in enumerate(found, start=1) if one == right), None)


def bm25s_alone(texts: list[str], questions: list[str], right: list[int]) -> Ranks:
    import bm25s
    import Stemmer

    def terms(rows: list[str]) -> Any:
        return bm25s.tokenize(rows, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)

    retriever = bm25s.BM25()
    retriever.index(terms(texts), show_progress=False)
    found, _ = retriever.retrieve(terms(questions), k=min(DEPTH, len(texts)), show_progress=False)
    return [rank_of(row.tolist(), one) for row, one in zip(found, right, strict=True)]


def dense_alone(texts: list[str], questions: list[str], right: list[int]) -> Ranks:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import semantic_search

    encoder, _ = find_encoder("auto")
    model = SentenceTransformer(str(getattr(encoder, "folder", "")), device="cpu")
    found = semantic_search(model.encode(questions), model.encode(texts), top_k=DEPTH)
    return [rank_of([int(hit["corpus_id"]) for hit in row], one) for row, one in zip(found, right, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--words", type=int, default=Settings().words)
    options = parser.parse_args()
    docs, rows = read(options.folder / "docs.jsonl"), read(options.folder / "questions.jsonl")
    texts, place = [row["text"] for row in docs], {row["doc_id"]: number for number, row in enumerate(docs)}
    right = [place[row["doc_id"]] for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(words=options.words)
        build_index(options.folder / "docs.jsonl", Path(folder), encoder=find_encoder("auto")[0], settings=settings)
        index = open_index(folder)
        for key in sorted(key for key in rows[0] if key.startswith("question")):
            questions = [row[key] for row in rows]
            ours = ranks(index, read_questions(options.folder / "questions.jsonl", key=key))
            show(
                f"{options.folder.name}, {key}: {len(questions)} questions, {len(docs)} documents",
                {
                    **{f"tunesmith {leg}": found for leg, found in ours.items()},
                    "bm25s": bm25s_alone(texts, questions, right),
                    "sentence-transformers": dense_alone(texts, questions, right),
                },
            )


def show(title: str, found: dict[str, Ranks]) -> None:
    """Each one's means with 95 % intervals, and the ratio of ours to it."""
    print(f"\n{title}")
    ours = measures(found["tunesmith fused"])
    for name, one in found.items():
        cells = []
        for measure, values in measures(one).items():
            mean = mean_interval(values)
            ratio = mean_interval(ours[measure]).mean / mean.mean if mean.mean else float("inf")
            cells.append(f"{measure} {mean.mean:.3f} ({mean.low:.3f}-{mean.high:.3f}), ours/it {ratio:.3f}")
        print(f"  {name:22s} " + "; ".join(cells))


if __name__ == "__main__":
    main()
