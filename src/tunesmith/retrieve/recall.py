"""How often the passage that answers is found: recall@k and the reciprocal rank, a value for each question.

Not here: means and intervals (evaluate.stats), which the command puts on these values.
Called by the command `search` and benchmarks/retrieval_quality.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError, InputError, Problem
from tunesmith.retrieve.search import Index, order

DEPTHS = (1, 5, 10)
DOCUMENT_KEYS = ("doc_id", "ref", "document", "documents", "docs")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the documents that answer it: any of them counts."""

    line: int
    text: str
    documents: frozenset[str]


def read_questions(path: Path, *, key: str = "question") -> list[Question]:
    """Rows of JSONL with the question under `key` and its documents under one of DOCUMENT_KEYS.

    Raises DataError with every line that cannot be used, InputError when the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    questions: list[Question] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _question(line, number, key)
        if isinstance(found, Question):
            questions.append(found)
        else:
            problems.append(Problem(str(path), number, None, found, f"Write {{{key!r}: ..., 'doc_id': ...}}."))
    if not questions and not problems:
        problems.append(Problem(str(path), None, None, "holds no question.", "Give a file with some."))
    if problems:
        raise DataError(problems)
    return questions


def _question(line: str, number: int, key: str) -> Question | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"no JSON that can be read ({error})."
    if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
        return f"no question under {key!r}."
    named: object = next((row[name] for name in DOCUMENT_KEYS if row.get(name)), [])
    documents = frozenset(str(one) for one in (named if isinstance(named, list) else [named]))
    if not documents:
        return f"the question names no document under any of {', '.join(DOCUMENT_KEYS)}."
    return Question(number, row[key], documents)


def ranks(index: Index, questions: Sequence[Question]) -> dict[str, list[int | None]]:
    """By leg ("fused", "bm25", "dense"), the rank from 1 of the first right document among the documents found, None
    where it is not among them. Several passages of one document count once."""
    found: dict[str, list[int | None]] = {}
    for question, legs in zip(questions, index.find([question.text for question in questions]), strict=True):
        for leg, numbers in {"fused": order(legs), **{leg: list(one) for leg, one in legs.items()}}.items():
            documents = dict.fromkeys(index.documents[number] for number in numbers)
            right = (rank for rank, document in enumerate(documents, start=1) if document in question.documents)
            found.setdefault(leg, []).append(next(right, None))
    return found


def measures(found: Sequence[int | None]) -> dict[str, list[float]]:
    """recall@1, @5, @10 (1 or 0 a question) and the reciprocal rank (mrr) from `ranks`."""
    values = {f"recall@{k}": [float(rank is not None and rank <= k) for rank in found] for k in DEPTHS}
    return {**values, "mrr": [0.0 if rank is None else 1 / rank for rank in found]}
