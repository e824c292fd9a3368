"""A text as the terms that BM25 counts: words without case, function words left out, stemmed for the language.

Not here: the counting (bm25s), passages (chunks).
Called by index and search, which must cut texts and questions alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import islice

from tunesmith.errors import InputError
from tunesmith.retrieve.chunks import UNSPACED

NO_LANGUAGE = "none"
# Snowball's names, and where bm25s keeps the function words.
STOP_WORDS = {
    "danish": "DANISH", "dutch": "DUTCH", "english": "EN_PLUS", "french": "FRENCH", "german": "GERMAN",
    "italian": "ITALIAN", "norwegian": "NORWEGIAN", "portuguese": "PORTUGUESE", "russian": "RUSSIAN",
    "spanish": "SPANISH", "swedish": "SWEDISH", "turkish": "TURKISH",
}  # fmt: skip
RUN = re.compile(rf"[{UNSPACED}]+|[^\W{UNSPACED}]+")
JUDGED_TEXTS, JUDGED_WORDS = 500, 200
MIN_SHARE = 0.12  # of the words; prose has 0.35 to 0.5, and a related language's list finds half of that

Terms = Callable[[str], list[str]]


def detect_language(texts: Sequence[str]) -> str:
    """The language whose function words are most of these texts, or "none": too few for any."""
    step = max(1, len(texts) // JUDGED_TEXTS)
    words = [word for text in texts[::step] for word in islice(_words(text), JUDGED_WORDS)]
    if not words:
        return NO_LANGUAGE
    found = {language: sum(map(_stop_words(language).__contains__, words)) for language in STOP_WORDS}
    best = max(found, key=found.__getitem__)
    return best if found[best] >= MIN_SHARE * len(words) else NO_LANGUAGE


def make_terms(language: str) -> Terms:
    """The function from text to terms. Scripts without spaces become pairs of characters, in every language."""
    if language == NO_LANGUAGE:
        return lambda text: list(_words(text))
    if language not in STOP_WORDS:
        raise InputError(f"The language {language!r} is not known.", f"One of: {', '.join(STOP_WORDS)}, none, auto.")
    import Stemmer

    stemmer, stop_words = Stemmer.Stemmer(language), _stop_words(language)

    def terms(text: str) -> list[str]:
        words = list(_words(text))
        # A question of function words alone ("What is it?") still asks for something.
        found: list[str] = stemmer.stemWords([word for word in words if word not in stop_words] or words)
        return found

    return terms


def _words(text: str) -> list[str]:
    words: list[str] = []
    for run in RUN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if len(run) > 1 and re.match(rf"[{UNSPACED}]", run):
            words += [run[start : start + 2] for start in range(len(run) - 1)]
        else:
            words.append(run)
    return words


def _stop_words(language: str) -> frozenset[str]:
    import bm25s.stopwords

    return frozenset(getattr(bm25s.stopwords, f"STOPWORDS_{STOP_WORDS[language]}"))
