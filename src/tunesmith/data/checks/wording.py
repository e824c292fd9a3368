"""Whether two texts ask the same in other words: typing errors, greetings, contractions and order of words aside.

Not here: finding the pairs to compare (shingles), what a match means for a row (near, leaks, labels, split).
Called by every check of data that compares rows with each other.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from tunesmith.chat import Example

_POLITE = "hi hello hey dear please pls plz kindly thanks thank thx you regards sorry"
_FUNCTION_WORDS = """
a an the this that these those my your our his her its their ur i we me us it he she they ya
is are was were am be been being do does did have has had can could will would shall should may might must
to of for on in at by from with about into as and or if so just also really still even there here some any
what which who when where why how want need like trying try get got getting go going know help assistance more one other
"""
_MEANINGFUL = "not no never none without nothing out off up down before after"
POLITE = frozenset(_POLITE.split())
FILLERS = POLITE | frozenset(_FUNCTION_WORDS.split()) - frozenset(_MEANINGFUL.split())
MEANINGFUL = frozenset(_MEANINGFUL.split())
NEGATION = re.compile(r"\b(do|does|did|is|are|was|were|has|have|had|could|would|should|might|must|need)n['\u2019]?t\b")
SPOKEN = (
    (re.compile(r"\b(?:can['\u2019]?t|cannot)\b"), "can not"),
    (re.compile(r"\b(?:won['\u2019]t|wont)\b"), "will not"),
    (NEGATION, r"\1 not"),
    (re.compile(r"['\u2019]m\b|\bim\b"), " am"),
    (re.compile(r"['\u2019]re\b"), " are"),
    (re.compile(r"['\u2019]ve\b|\bive\b"), " have"),
    (re.compile(r"['\u2019]ll\b"), " will"),
    (re.compile(r"['\u2019](?:s|d)\b"), " "),
)
WORDS_PER_CHANGE = 16  # a text of so many words may have one word replaced and still ask the same
CLOSE = 0.8  # share of common shingles from which a replaced word is forgiven at all


class _Separators(dict[int, int]):
    """A translate table that turns punctuation, spaces and control characters into spaces; filled as it is used."""

    def __missing__(self, code: int) -> int:
        category = unicodedata.category(chr(code))[0]
        self[code] = 32 if category in "PZC" else code
        return self[code]


_SEPARATORS = _Separators()


def normal_text(text: str) -> str:
    """Casefolded text in NFKC with punctuation and whitespace collapsed to single spaces; the text itself if
    nothing else is in it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SEPARATORS).split()) or text


def request_text(example: Example) -> str:
    """What is asked: the turns before the answer without the system prompt, which many rows share."""
    turns = [turn.content for turn in example.prompt if turn.role not in ("system", "developer")]
    return "\n".join(turns or [turn.content for turn in example.prompt])


def words(text: str) -> list[str]:
    """The words of the normal form, contractions written out."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    for pattern, spoken in SPOKEN:
        folded = pattern.sub(spoken, folded)
    return normal_text(folded).split()


def ask_the_same(one: Sequence[str], two: Sequence[str], *, similarity: float, least: float) -> bool:
    """Whether two requests, as their words, are one; `similarity` is that of their shingles (0 to 1).

    They are when nothing is different but case, punctuation, typing errors and politeness. From a similarity of `least`
    on, function words may differ too, but no number and no negation; and in texts that are close as a whole one other
    word in sixteen: 'my card was stolen' and 'my phone was stolen' are two requests.
    """
    left, right = _unexplained(one, two)
    changed = [word for word in (*left, *right) if word not in POLITE]
    if not changed or similarity < least:
        return not changed
    if any(word in MEANINGFUL or any(letter.isdigit() for letter in word) for word in changed):
        return False
    replaced = max(sum(word not in FILLERS for word in side) for side in (left, right))
    return replaced <= (max(len(one), len(two)) // WORDS_PER_CHANGE if similarity >= CLOSE else 0)


def _unexplained(first: Sequence[str], second: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of each that the other lacks, without typing errors and words written as one."""
    if "".join(first) == "".join(second):
        return [], []
    left, right = _without(first, second), _without(second, first)
    for word in list(left):
        match = next((other for other in right if is_typo(word, other)), None)
        if match is not None:
            left.remove(word)
            right.remove(match)
    if "".join(left) == "".join(right):
        return [], []
    return left, right


def _without(words: Sequence[str], others: Sequence[str]) -> list[str]:
    rest = Counter(others)
    left = []
    for word in words:
        if rest[word]:
            rest[word] -= 1
        else:
            left.append(word)
    return left


def is_typo(one: str, two: str) -> bool:
    """One letter missing, added, replaced or two neighbours swapped, in a word of letters long enough to show it."""
    if len(one) > len(two):
        one, two = two, one
    if len(two) - len(one) > 1 or len(one) < 3 or not one.isalpha() or not two.isalpha():
        return False
    start = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), len(one))
    rest, other = one[start:], two[start:]
    if len(one) == len(two):
        if rest[:2] == other[:2][::-1] and rest[2:] == other[2:]:
            return True
        return len(one) >= 5 and rest[1:] == other[1:]
    return len(two) >= 5 and rest == other[1:]
