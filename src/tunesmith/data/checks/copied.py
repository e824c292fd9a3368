"""Whether a value stands in a text, word for word or in another form: case, plural, fraction, number word, month.

Not here: which values ought to (targets).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from tunesmith.data.checks.wording import is_typo, normal_text

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_MONTHS = "january february march april may june july august september october november december"
NUMBER_WORDS = {
    **{word: float(value) for value, word in enumerate(_ONES.split())},
    **{word: float(value) for value, word in enumerate(_ORDINALS.split())},
    **{word: float(value) for value, word in enumerate(_MONTHS.split(), start=1)},
    **{word[:3]: float(value) for value, word in enumerate(_MONTHS.split(), start=1)},
    **dict.fromkeys(("a", "an", "once"), 1.0),
    **dict.fromkeys(("twice", "couple"), 2.0),
    **dict(zip(("half", "quarter", "dozen", "hundred", "thousand"), (0.5, 0.25, 12.0, 100.0, 1000.0), strict=True)),
    **dict(zip(("twenty", "thirty", "forty", "fifty", "sixty"), (20.0, 30.0, 40.0, 50.0, 60.0), strict=True)),
}
FRACTION = re.compile(r"(?:([0-9]+)[\s-]+)?([0-9]+)\s*[/\u2044]\s*([1-9][0-9]*)")
NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
GARBLED = re.compile("[\u00c3\u00c2][\u0080-\u00bf]|\u00e2\u20ac|\ufffd")
FIGURES = re.compile(r"[0-9]+")


BOUNDARY = re.compile(r"(?<=[0-9])(?=[^\W\d_])|(?<=[^\W\d_])(?=[0-9])")  # 200g
NEAR_ENOUGH = 0.01  # 2/3 is written 0.667


class Passage:
    """A text prepared for many questions."""

    def __init__(self, text: str) -> None:
        plain = _plain(TAG.sub(" ", text))
        self.is_garbled = GARBLED.search(text) is not None  # what it held cannot be known: mojibake has its own finding
        self.normal = f" {normal_text(plain)} "
        self.words = set(self.normal.split())
        self.stems = {_stem(word) for word in self.words}
        self.letters = self.normal.replace(" ", "")
        self.figures = FIGURES.findall(plain)
        said = [NUMBER_WORDS[word] for word in self.normal.split() if word in NUMBER_WORDS]
        self.numbers = {*_amounts(plain), *map(float, self.figures), *said}

    def holds(self, value: str) -> bool:
        """Whether all of the value stands in the text, in any order and form."""
        plain = _plain(value)
        normal = normal_text(plain)
        squeezed = normal.replace(" ", "")
        if f" {normal} " in self.normal or (_is_telling(squeezed) and squeezed in self.letters):
            return True
        return self._has_figures(plain) and all(self._has(word) for word in normal.split() if not word[0].isdigit())

    def _has_figures(self, plain: str) -> bool:
        """As they stand, as amounts (0.5 for 1/2), or run together (1/41/2)."""
        figures = FIGURES.findall(plain)
        amounts = [any(abs(amount - other) < NEAR_ENOUGH for other in self.numbers) for amount in _amounts(plain)]
        together = "".join(figures)
        return (
            all(float(figure) in self.numbers for figure in figures)
            or all(amounts)
            or (len(together) >= 3 and together in "".join(self.figures))
        )

    def _has(self, word: str) -> bool:
        if word in self.words or _stem(word) in self.stems or NUMBER_WORDS.get(word) in self.numbers:
            return True
        inside = _is_telling(word) and word in self.letters
        return inside or any(is_typo(word, other) for other in self.words | self.stems)


def _is_telling(letters: str) -> bool:
    """Whether they may be looked for inside words: few letters stand in many, but not those of Chinese."""
    return len(letters) >= 4 or (letters != "" and all(letter >= "\u2e80" for letter in letters))


def _plain(text: str) -> str:
    """Fractions of one character as three, figures parted from letters."""
    spaced = "".join(f" {letter} " if unicodedata.category(letter) == "No" else letter for letter in text)
    return BOUNDARY.sub(" ", unicodedata.normalize("NFKC", spaced))


def _stem(word: str) -> str:
    for end, start in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", ""), ("e", "")):
        if len(word) > len(end) + 1 and word.endswith(end):
            return word[: -len(end)] + start
    return word


def _amounts(plain: str) -> Iterator[float]:
    """What the figures amount to: fractions, also after a whole number, and decimals."""
    for whole, over, under in FRACTION.findall(plain):
        yield (float(whole) if whole else 0.0) + float(over) / float(under)
    for figure in NUMBER.findall(FRACTION.sub(" ", plain)):
        yield float(figure.replace(",", "")) if figure.count(".") <= 1 else float(figure.split(".")[0])
