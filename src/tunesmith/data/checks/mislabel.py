"""Labels that the texts speak against: confident learning with a classifier that never saw the row it judges.

Not here: which answers are labels (labels), fields of JSON answers (targets).
Gaussian-process regression on the labels over word and letter n-grams; its leave-one-out predictions have a closed form
(Rasmussen and Williams 2006, equation 5.12). The idea of judging by such predictions: Northcutt et al. 2021.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_JUDGED = 50_000  # more rows are not judged: about two minutes on one core
BLOCK = 4000  # rows judged together; the time grows with the third power of it
SHARPNESS, NOISE = 3.0, 0.15
MANY_LABELS = 20
LEAST_RIGHT_MANY, LEAST_RIGHT_FEW = 0.6, 0.85  # where the classifier agrees with fewer labels, it cannot judge them
EASY = 0.93  # where it agrees with more, a smaller margin will do
KNOWN_SHARE, KNOWN_ROWS = 0.5, 5  # a text is judged when half of its words stand in five texts or more
MAX_WORDS = 400
LEAST_TEXTS = 5  # of the better label: two texts say little about a third

Scores = NDArray[np.float64]


def mislabelled(
    texts: Sequence[str], labels: Sequence[str], *, reference: Sequence[tuple[str, str]] = ()
) -> Iterator[tuple[int, str]]:
    """Indices whose label is improbable by its text while another is far more probable, and that other label.

    `texts` in normal form, each once; `reference` holds (text, label) pairs that are learned from but not judged.
    Only the first MAX_JUDGED texts are judged. Every label should have two texts or more.
    """
    names = sorted(set(labels))
    number = {name: index for index, name in enumerate(names)}
    if len(names) < 2:
        return
    extra = [(text, number[label]) for text, label in reference if label in number]
    all_texts = [*texts[:MAX_JUDGED], *(text for text, _ in extra)]
    given = np.array([*(number[label] for label in labels[:MAX_JUDGED]), *(label for _, label in extra)])
    scores_NC = _left_out_scores(all_texts, given, names)[: min(len(texts), MAX_JUDGED)]
    given = given[: len(scores_NC)]
    better = _better_labels(scores_NC, given)
    sizes = np.bincount(given, minlength=len(names))
    better = np.where(sizes[better] >= LEAST_TEXTS, better, -1)
    counts = Counter(word for text in all_texts for word in set(text.split()))
    for index in np.flatnonzero(better >= 0).tolist():
        if _is_known(texts[index], counts):
            yield index, names[better[index]]


def _better_labels(scores_NC: Scores, given_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label to prefer, -1 where the given one may stand.

    It must lose by a wide margin. Among many labels it must also be no runner-up: people and classifiers confuse
    neighbours, and only a label that fits no better than any other is surely a mistake.
    """
    right = (scores_NC.argmax(axis=1) == given_N).mean()
    has_many = scores_NC.shape[1] >= MANY_LABELS
    if right < (LEAST_RIGHT_MANY if has_many else LEAST_RIGHT_FEW):
        return np.full(len(given_N), -1)
    rows = np.arange(len(given_N))
    given = scores_NC[rows, given_N]
    others = scores_NC.copy()
    others[rows, given_N] = -np.inf
    margin = others.max(axis=1) - given
    if has_many:
        standing = (given - scores_NC.mean(axis=1)) / scores_NC.std(axis=1)  # 0: like any label of the list
        wrong = (margin - 0.2 * standing >= 0.24) & (standing < 0.7)
    else:
        wrong = margin >= (0.35 if right >= EASY else 0.6)
    return np.where(wrong, others.argmax(axis=1), -1)


def _is_known(text: str, counts: Counter[str]) -> bool:
    words = text.split()
    return len(words) <= MAX_WORDS and sum(counts[word] >= KNOWN_ROWS for word in words) >= KNOWN_SHARE * len(words)


def _left_out_scores(texts: Sequence[str], given_N: NDArray[np.int64], names: Sequence[str]) -> Scores:
    """How well each label fits each text (N, C), judged without that row; in blocks of rows drawn from all."""
    scores = np.zeros((len(texts), len(names)))
    order = np.random.default_rng(0).permutation(len(texts))
    for block in np.array_split(order, -(-len(texts) // BLOCK)):
        inside = [texts[index] for index in block]
        # Each label's own name is one more text of it: "card_not_working" tells what belongs there.
        kernel = _kernel([*inside, *(name.replace("_", " ").casefold() for name in names)])
        labels = np.concatenate([given_N[block], np.arange(len(names))])
        targets = np.eye(len(names))[labels] - np.bincount(given_N[block], minlength=len(names)) / len(block)
        inverse = np.linalg.inv(kernel + np.float32(NOISE) * np.eye(len(kernel), dtype=np.float32))
        left_out = targets - (inverse @ targets) / np.diag(inverse)[:, None]
        scores[block] = left_out[: len(block)]
    return scores


def _kernel(texts: Sequence[str]) -> NDArray[np.float32]:
    """Similarity of each pair of texts, 0 to 1: exp of the cosine over words and over letters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|\S")
    letters = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5))
    cosine = np.zeros((len(texts), len(texts)))
    for vectorizer in (words, letters):
        features = vectorizer.fit_transform(texts)
        cosine += 0.5 * (features @ features.T).toarray()
    similarity: NDArray[np.float32] = np.exp(SHARPNESS * (cosine - 1)).astype(np.float32)
    return similarity
