"""How near a reply is to an author's own texts in style: Burrows's Delta over counts that topic hardly moves.

Not here: meaning, correctness. The formula stands in `Style`. Called by the list of scorers as style:FILE.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.chat import Example, parse_row
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers.score import Aggregate, Given, Score, Scorer, read_argument_file
from tunesmith.evaluate.scorers.text import sentences, words
from tunesmith.evaluate.stats import Floats, bootstrap_interval

COMMON_WORDS = 50  # at most: the author's most frequent words that at least a third of the texts hold
FEWEST_TEXTS = 20
FOLDS = 5
MARKS = (",", ";", ":", ".", "!", "?", "…", "-", "—", "(", '"', "'", "\n", "*", "#")
FIXED = ("words a sentence", "letters a word", "capitals in letters", "capitals opening sentences",
         "digits in characters", *(f"{mark!r} in characters" for mark in MARKS))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """An author's habits. Every feature is a rate, a count by another: function words (the author's own most frequent
    words), sentence and word lengths, casing, digits, punctuation.

    The distance of a text is the mean over features of |rate - m| / s, where m and s are the mean and standard
    deviation of the rate over the author's texts (Burrows 2002, Literary and Linguistic Computing 17:267-287).
    The score of a text is the share of the author's own texts that lie at least as far away, each measured against
    the other four fifths: 0.5 is an average text of the author, below 0.05 one that the author hardly writes.
    """

    common: tuple[str, ...]
    means_F: Floats
    spreads_F: Floats
    own_distances: Floats

    @property
    def features(self) -> tuple[str, ...]:
        return (*FIXED, *(f"the word {word!r}" for word in self.common))

    def gaps_F(self, counts_F: Floats, totals_F: Floats) -> Floats:
        """(rate - m) / s of every feature; the last axis of both is F."""
        rates_F = counts_F / np.maximum(totals_F, 1)
        return np.asarray((rates_F - self.means_F) / self.spreads_F)

    def distance(self, text: str) -> float:
        return float(np.abs(self.gaps_F(*_count(text, self.common))).mean())

    def score(self, text: str) -> Score:
        if not words(text):
            return Score(0.0, "the reply has no word")
        gaps_F = self.gaps_F(*_count(text, self.common))
        distance = float(np.abs(gaps_F).mean())
        share = (1 + int((self.own_distances >= distance).sum())) / (1 + len(self.own_distances))
        most = [f"{'more' if gaps_F[i] > 0 else 'less'} {self.features[i]}" for i in np.argsort(-np.abs(gaps_F))[:3]]
        return Score(share, f"{share:.0%} of the author's texts lie as far off ({distance:.2f}): {', '.join(most)}")


def learn_style(texts: Sequence[str]) -> Style:
    """The habits in an author's texts. Raises InputError for fewer than 20 of them."""
    texts = [text for text in texts if words(text)]
    if len(texts) < FEWEST_TEXTS:
        what = f"{len(texts)} texts of the author are too few to know a style from."
        raise InputError(what, f"Give {FEWEST_TEXTS} or more: rows, or paragraphs with an empty line between them.")
    common = _common_words(texts)
    counts_NF, totals_NF = (np.array(part) for part in zip(*(_count(text, common) for text in texts), strict=True))
    rates_NF = counts_NF / np.maximum(totals_NF, 1)
    own = np.empty(len(texts))
    for fold in range(FOLDS):
        held_N = np.arange(len(texts)) % FOLDS == fold
        means_F, spreads_F = _spread(rates_NF[~held_N])
        own[held_N] = np.abs((rates_NF[held_N] - means_F) / spreads_F).mean(axis=1)
    return Style(common, *_spread(rates_NF), own)


def style(argument: str, given: Given) -> Scorer:
    """style:FILE with the author's texts: rows (their answers are taken) or plain text cut at empty lines."""
    own = _read_texts(argument)
    learnt = learn_style(own)
    usual = float(np.median([len(words(text)) for text in own]))

    def score(example: Example, reply: Reply) -> Score:
        return learnt.score(reply.text)

    def aggregate(examples: Sequence[Example], replies: Sequence[Reply]) -> Aggregate:
        """All replies as one text: their joint distance tells far more than that of one short reply."""
        counted = [_count(reply.text, learnt.common) for reply in replies]
        counts_NF, totals_NF = (np.array(part) for part in zip(*counted, strict=True))

        def distance(weights_RN: Floats) -> Floats:
            return np.asarray(np.abs(learnt.gaps_F(weights_RN @ counts_NF, weights_RN @ totals_NF)).mean(axis=1))

        gaps_F = learnt.gaps_F(counts_NF.sum(axis=0), totals_NF.sum(axis=0))
        table = [{"feature": learnt.features[i], "gap": float(gaps_F[i])} for i in np.argsort(-np.abs(gaps_F))[:10]]
        length = float(np.median([len(words(reply.text)) for reply in replies]))
        said = []
        if not usual / 2 <= length <= usual * 2:
            said = [
                f"Replies have {length:.0f} words, the author's texts {usual:.0f}: so far apart, scores are blurred."
            ]
        return Aggregate({"distance": bootstrap_interval(distance, len(replies))}, {"features": table}, said)

    return Scorer(score, aggregate=aggregate)


def _count(text: str, common: Sequence[str]) -> tuple[Floats, Floats]:
    """Of each feature what is counted, and by what it is divided."""
    own_words = words(text)
    own_sentences = sentences(text)
    letters = sum(map(str.isalpha, text))
    opening = sum(next((char.isupper() for char in part if char.isalpha()), False) for part in own_sentences)
    num_words, num_sentences, length = len(own_words), len(own_sentences), len(text)
    marks = Counter(text)
    told = Counter(word.casefold() for word in own_words)
    counts = [num_words, sum(map(len, own_words)), sum(map(str.isupper, text)), opening, sum(map(str.isdigit, text)),
              *(marks[mark] for mark in MARKS), *(told[word] for word in common)]  # fmt: skip
    totals = [
        num_sentences,
        num_words,
        letters,
        num_sentences,
        length,
        *[length] * len(MARKS),
        *[num_words] * len(common),
    ]
    return np.array(counts, dtype=np.float64), np.array(totals, dtype=np.float64)


def _common_words(texts: Sequence[str]) -> tuple[str, ...]:
    told: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for text in texts:
        own = [word.casefold() for word in words(text)]
        told.update(own)
        held.update(set(own))
    frequent = sorted((word for word in told if held[word] * 3 >= len(texts)), key=lambda word: (-told[word], word))
    return tuple(frequent[:COMMON_WORDS])


def _spread(rates_NF: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation. What the author never varies would weigh without bound: it is held at 1/5 of the
    mean rate, and at 0.002."""
    means_F = rates_NF.mean(axis=0)
    return means_F, np.maximum(rates_NF.std(axis=0), np.maximum(np.abs(means_F) / 5, 0.002))


def _read_texts(path: str) -> list[str]:
    text = read_argument_file(path, scorer="style")
    if Path(path).suffix.lower() not in (".jsonl", ".ndjson"):
        return [part.strip() for part in text.replace("\r\n", "\n").split("\n\n") if part.strip()]
    answers = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                example, problems = parse_row(json.loads(line))
            except ValueError as error:
                raise InputError(f"{path}:{number}: this is no JSON: {error}.", "Mend the line.") from error
            if example is None:
                raise InputError(f"{path}:{number}: {problems[0].what}", problems[0].todo)
            answers.append(example.answer)
    return answers
