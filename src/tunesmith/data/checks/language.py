"""Which language each text is in, and the rows that are in another one than the rest of the file.

Not here: texts too short to tell, labels, code and JSON, which are never judged.
Called by check.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tunesmith.data.checks.boilerplate import are_labels
from tunesmith.data.checks.markup import looks_like_code
from tunesmith.data.finding import Finding
from tunesmith.data.load import SourceRow

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
MIN_LETTERS, MIN_WORDS = 12, 3  # below this a text in Latin script is not judged
MIN_OTHER_LETTERS = 4  # of another script, where a word says more
JUDGED_CHARS = 160
VOTES = 200  # texts that say what the main language is
# log(p(language) / p(main)) from which the identifier is believed. Measured on 25,076 clean rows and on 124 questions
# in 13 languages: short texts and texts of words that the file uses elsewhere ("dulce de leche") need more.
MIN_MARGIN, MIN_MARGIN_OF_THREE_WORDS = 3.5, 6.0
MARGIN_BY_KNOWN_SHARE, FREE_KNOWN_SHARE = 10.0, 0.2
MAIN_SHARE = 0.75  # below this the file is one of several languages, and none of its rows is odd
OTHER_SHARE = 0.15  # nor where one other language has so many rows
KNOWN_SHARE = 0.6  # of its words known from the main language's texts: not worth the identifier's time
KNOWN_TEXTS = 3

NOISE = re.compile(
    r"```.*?(?:```|\Z)|`[^`]*`|https?://\S+|\S+@\S+|\{\{.*?\}\}|\[[^\]\n]*\]|<[^<>]*>|[\w.]*[\d_/\\]\w*", re.DOTALL
)
WORD = re.compile(r"[^\W\d_½¼¾⅓⅔⅛]+")
LATIN = re.compile(r"[a-zA-ZÀ-ɏ]")
ASKS_FOR_LANGUAGE = re.compile(
    r"\b(?:translat|übersetz|tradu[izc]|перевед|vertaal|language|"
    + "|".join(NAMES.values())
    + r"|deutsch|español|français)",
    re.IGNORECASE,
)


Ranker = Callable[[str], list[tuple[str, float]]]  # languages with probabilities, best first


@dataclass(frozen=True, slots=True)
class Text:
    line: int
    place: str
    words: str  # without code, addresses, placeholders and numbers


def language_findings(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    """Texts in another language than the file's; what is asked and what is answered are judged apart."""
    for side, texts in _sides(rows).items():
        yield from _odd_ones(side, texts)


def _sides(rows: Sequence[SourceRow]) -> dict[str, list[Text]]:
    labelled = are_labels([row.example.answer for row in rows])
    sides: dict[str, list[Text]] = defaultdict(list)
    for row in rows:
        asked = False
        for number, message in enumerate(row.example.messages, start=1):
            if message.role == "user":
                asked = asked or ASKS_FOR_LANGUAGE.search(message.content or "") is not None
            elif message.role not in ("assistant", "text") or (message.role == "assistant" and (labelled or asked)):
                continue
            if (words := _words(message.content or "")) is not None and not (asked and message.role == "user"):
                side = "answers" if message.role == "assistant" else "questions"
                sides[side].append(Text(row.line, f"message {number} ({message.role})", words))
    return sides


def _words(text: str) -> str | None:
    """What can be judged of a text, None when that is too little, or code."""
    text = text[: 2 * JUDGED_CHARS]
    if looks_like_code(text):
        return None
    words = WORD.findall(NOISE.sub(" ", text))[: JUDGED_CHARS // 4]
    letters = sum(map(len, words))
    other = letters - sum(len(LATIN.findall(word)) for word in words)
    if other >= MIN_OTHER_LETTERS or (letters >= MIN_LETTERS and len(words) >= MIN_WORDS):
        return " ".join(words)[:JUDGED_CHARS]
    return None


def _odd_ones(side: str, texts: Sequence[Text]) -> Iterator[Finding]:
    votes = Counter(_ranker(())(text.words)[0][0] for text in texts[:: max(1, len(texts) // VOTES)])
    if len(texts) < 2:
        return
    main = votes.most_common(1)[0][0]
    found = _foreign(texts, main)
    others = Counter(other for _, other in found)
    if not others:
        return
    if len(found) > (1 - MAIN_SHARE) * len(texts) or others.most_common(1)[0][1] > max(1, OTHER_SHARE * len(texts)):
        counts = ", ".join(f"{NAMES.get(code, code)} {count}" for code, count in others.most_common(5))
        detail = f"the {side} are in several languages ({NAMES.get(main, main)} {len(texts) - len(found)}, {counts})."
        yield Finding(None, "mixed_language", "info", detail, "Fine if it is meant so; no row is reported for it.")
        return
    for text, other in found:
        languages = f"{NAMES.get(other, other)}, the other {side} are {NAMES.get(main, main)}"
        detail = f"{text.place} is {languages}: {text.words[:60]!r}."
        yield Finding(text.line, "mixed_language", "warning", detail, "Translate it, or take the row out.")


def _foreign(texts: Sequence[Text], main: str) -> list[tuple[Text, str]]:
    """The texts that are surely in another language, with it. Words of the others are learnt on the way."""
    rank = _ranker(tuple(sorted({*NAMES, main})))
    counts: Counter[str] = Counter()
    unsure: list[tuple[Text, str, float]] = []
    for text in texts:
        if _known_share(text.words, counts) >= KNOWN_SHARE:
            continue
        best, margin = _margin(text.words, main, rank)
        if margin >= MIN_MARGIN:
            unsure.append((text, best, margin))
        else:
            counts.update(set(text.words.casefold().split()))
    return [(text, best) for text, best, margin in unsure if margin >= _needed_margin(text.words, counts)]


def _margin(text: str, main: str, rank: Ranker) -> tuple[str, float]:
    """The likeliest language and how much likelier than the main one it is, also without what may be a name."""
    ranked = rank(text)
    best, words = ranked[0][0], text.split()
    plain = [word for at, word in enumerate(words) if at == 0 or not word[0].isupper()]
    if best == main or (len(plain) < min(2, len(words)) and not text.isupper()):
        return main, 0.0
    versions = [ranked] if text.isupper() else [ranked, rank(" ".join(plain))]
    return best, min(math.log(version[0][1] / max(dict(version)[main], 1e-12)) for version in versions)


def _needed_margin(text: str, counts: Counter[str]) -> float:
    few = len(text.split()) <= MIN_WORDS and sum(map(len, LATIN.findall(text))) > len(text) / 2
    extra = MARGIN_BY_KNOWN_SHARE * max(0.0, _known_share(text, counts) - FREE_KNOWN_SHARE)
    return (MIN_MARGIN_OF_THREE_WORDS if few else MIN_MARGIN) + extra


def _known_share(text: str, counts: Counter[str]) -> float:
    words = text.casefold().split()
    return sum(counts[word] >= KNOWN_TEXTS for word in words) / len(words)


@lru_cache(maxsize=8)
def _ranker(languages: tuple[str, ...]) -> Ranker:
    """A function from a text to languages and their probabilities, best first; among all languages for ()."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if languages:
        identifier.set_languages(list(languages))
    rank: Ranker = identifier.rank
    return rank
