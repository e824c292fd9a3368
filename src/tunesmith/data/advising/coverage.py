"""What people ask that the training rows do not hold: inputs in clusters, and those far from every row.

Not here: reading the inputs (inputs), what to do about it (generate). Distances are between TF-IDF vectors of words and
letters: other words for the same thing look far, so read the examples.
Called by data.advising.advice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MAX_TEXTS = 20_000  # of each side; of more a sample is compared, evenly spread
MAX_CLUSTERS = 40
USUAL = 0.05  # a row nearer to others than this share of the training rows are to each other is usual
TERMS, SHOWN = 6, 3


@dataclass(frozen=True, slots=True)
class Gap:
    """A cluster of inputs without training rows near it. `nearest`: cosine (0 to 1) to the nearest row, its median."""

    inputs: int
    share: float  # of all inputs
    nearest: float
    terms: list[str]
    examples: list[tuple[int, str]]  # line and text

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def coverage_gaps(rows: Sequence[str], inputs: Sequence[tuple[int, str]]) -> tuple[list[Gap], float]:
    """The gaps, the largest first, and the share of all inputs that are as near to a row as rows are to each other."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    known, asked = _spread(list(rows)), _spread(list(inputs))
    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", stop_words="english")
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    texts = [*known, *(text for _, text in asked)]
    words = vectors.fit_transform(texts)
    features = letters.fit_transform(texts)
    near_rows = _nearest(features[: len(known)], features[: len(known)], itself=True)
    near_inputs = _nearest(features[len(known) :], features[: len(known)], itself=False)
    usual = float(np.quantile(near_rows, USUAL))
    far = near_inputs < usual
    count = min(MAX_CLUSTERS, max(1, round((len(asked) / 4) ** 0.5)), len(asked))
    dense = features[len(known) :]
    if dense.shape[1] > 64 and len(asked) > 64:
        dense = normalize(TruncatedSVD(64, random_state=0).fit_transform(dense))
    cluster_N = KMeans(count, random_state=0, n_init=3).fit_predict(dense)
    names = vectors.get_feature_names_out()
    gaps = []
    for cluster in range(count):
        members = np.flatnonzero(cluster_N == cluster)
        if not len(members) or far[members].mean() <= 0.5:
            continue
        weights = np.asarray(words[len(known) + members].mean(axis=0)).ravel()
        middle = members[np.argsort(near_inputs[members])][:SHOWN]
        gaps.append(
            Gap(
                len(members),
                round(len(members) / len(asked), 4),
                round(float(np.median(near_inputs[members])), 4),
                [str(names[term]) for term in np.argsort(-weights)[:TERMS] if weights[term] > 0],
                [(asked[int(member)][0], asked[int(member)][1]) for member in middle],
            )
        )
    return sorted(gaps, key=lambda gap: -gap.inputs), round(float(1 - far.mean()), 4)


def _spread(items: list[Any]) -> list[Any]:
    step = -(-len(items) // MAX_TEXTS)
    return items[:: max(1, step)]


def _nearest(left: Any, right: Any, *, itself: bool) -> Any:
    """Of each row of `left` the cosine to its nearest of `right`; `itself`: they are the same rows."""
    best = []
    for start in range(0, left.shape[0], 1000):
        likeness = (left[start : start + 1000] @ right.T).toarray()
        if itself:
            likeness[np.arange(len(likeness)), np.arange(start, start + len(likeness))] = 0.0
        best.append(likeness.max(axis=1))
    return np.concatenate(best)
