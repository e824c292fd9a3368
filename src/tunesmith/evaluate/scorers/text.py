"""Scorers of plain text: matches, patterns, phrases that must or must not stand there, lengths, ended by itself.

Not here: overlap with the expected answer (overlap), JSON (structure). Listed in the package's __init__.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers.score import Factory, Given, Score, Scorer, quote, read_argument_file

NO_SPACES = "\u0e00"  # from here on (Thai, Chinese, Japanese ...) words are not divided by spaces
SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)|[。！？]+|\n\s*\n|$""")
LIMIT = re.compile(r"(<=|>=|<|>|)\s*(\d+)(?:\s*-\s*(\d+))?")
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "": operator.eq}


def normalise(text: str) -> str:
    """NFKC, case folded; each run of white space, punctuation and `_` becomes one space. Symbols such as + stay."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (
        "" if unicodedata.category(char) == "Cf" else " " if unicodedata.category(char)[0] in "PZC" else char
        for char in folded
    )
    return " ".join("".join(kept).split())


def occurs(phrase: str, text: str) -> bool:
    """Whether a phrase stands in a text as whole words, case and punctuation aside."""
    wanted, got = normalise(phrase), normalise(text)
    if not wanted:
        return phrase.strip() in text
    if any(char >= NO_SPACES for char in wanted):
        return wanted in got
    return f" {wanted} " in f" {got} "


def words(text: str) -> list[str]:
    """Runs of letters and digits, with inner apostrophes and hyphens; in scripts without spaces, each character."""
    return re.findall(rf"[{NO_SPACES}-\U0010ffff]|[^\W_]+(?:['’-][^\W_]+)*", text)


def sentences(text: str) -> list[str]:
    """Cut after . ! ? … (and closing quotes) before white space, after 。！？, and at empty lines."""
    parts, start = [], 0
    for end in SENTENCE_END.finditer(text):
        parts.append(text[start : end.end()].strip())
        start = end.end()
    return [part for part in parts if words(part)]


def exact(argument: str, given: Given) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        same = reply.text.strip() == example.answer.strip()
        return _match(same, example, reply=reply, how="equals the expected answer")

    return Scorer(score)


def normalised(argument: str, given: Given) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        wanted, got = normalise(example.answer), normalise(reply.text)
        # Two texts of punctuation only both become "": compare them as they are.
        same = wanted == got if wanted or got else example.answer.strip() == reply.text.strip()
        return _match(same, example, reply=reply, how="equals the expected answer once normalised")

    return Scorer(score)


def contains(argument: str, given: Given) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        if occurs(example.answer, reply.text):
            return Score(1.0, "the expected answer occurs in the reply")
        return Score(0.0, f"{quote(example.answer)} does not occur in the reply {quote(reply.text)}")

    return Scorer(score)


def regex(argument: str, given: Given) -> Scorer:
    """The pattern is searched for anywhere in the reply; anchor it with ^ and $ to ask for the whole reply."""
    try:
        pattern = re.compile(argument)
    except re.error as error:
        raise InputError(
            f"The pattern {argument!r} is not a regular expression: {error}.", "Mend the pattern."
        ) from error

    def score(example: Example, reply: Reply) -> Score:
        if pattern.search(reply.text):
            return Score(1.0, f"the reply matches {argument!r}")
        return Score(0.0, f"the reply {quote(reply.text)} does not match {argument!r}")

    return Scorer(score)


def stopped(argument: str, given: Given) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        if reply.stopped:
            return Score(1.0, "the model ended its turn")
        return Score(0.0, f"the reply ended by {reply.finish_reason!r} after {reply.completion_tokens} tokens")

    return Scorer(score)


def banned(argument: str, given: Given) -> Scorer:
    """1 when none of the phrases occurs."""
    phrases = _phrases(argument, scorer="banned")

    def score(example: Example, reply: Reply) -> Score:
        found = [phrase for phrase in phrases if occurs(phrase, reply.text)]
        if found:
            return Score(0.0, f"the reply holds {', '.join(map(quote, found))}")
        return Score(1.0, "the reply holds no banned phrase")

    return Scorer(score)


def required(argument: str, given: Given) -> Scorer:
    """The share of the phrases that occur."""
    phrases = _phrases(argument, scorer="required")

    def score(example: Example, reply: Reply) -> Score:
        missing = [phrase for phrase in phrases if not occurs(phrase, reply.text)]
        if missing:
            return Score(1 - len(missing) / len(phrases), f"the reply lacks {', '.join(map(quote, missing))}")
        return Score(1.0, "the reply holds every required phrase")

    return Scorer(score)


def limit_of(unit: str) -> Factory:
    """The factory of `words:<8`, `chars:<=280` or `sentences:1-3`."""
    count = {"words": lambda text: len(words(text)), "chars": lambda text: len(text.strip())}.get(
        unit, lambda text: len(sentences(text))
    )

    def make(argument: str, given: Given) -> Scorer:
        fits = _limit(argument, unit=unit)

        def score(example: Example, reply: Reply) -> Score:
            number = count(reply.text)
            return Score(float(fits(number)), f"the reply has {number} {unit}, asked for {argument}")

        return Scorer(score)

    return make


def _limit(argument: str, *, unit: str) -> Callable[[int], bool]:
    match = LIMIT.fullmatch(argument.strip())
    sign, first, last = match.groups() if match else ("", None, None)
    if first is None or (last is not None and (sign or int(last) < int(first))):
        todo = f"Write {unit}:'<8', '<=8', '>=3', '8' or '3-8' (in quotes: a shell reads < and > itself)."
        raise InputError(f"{argument!r} is no limit of {unit}.", todo)
    if last is not None:
        return lambda number: int(first) <= number <= int(last)
    return lambda number: bool(COMPARE[sign](number, int(first)))


def _phrases(argument: str, *, scorer: str) -> list[str]:
    """The lines of a file, or the argument itself cut at |. What looks like a path must be one."""
    looks_like_path = argument.lower().endswith((".txt", ".md", ".csv")) or Path(argument).is_file()
    parts = read_argument_file(argument, scorer=scorer).splitlines() if looks_like_path else argument.split("|")
    phrases = [part.strip() for part in parts if part.strip()]
    if not phrases:
        todo = f"Write {scorer}:PHRASE, {scorer}:ONE|OTHER, or {scorer}:FILE with a phrase a line."
        raise InputError(f"The scorer {scorer!r} was given no phrase.", todo)
    return phrases


def _match(ok: bool, example: Example, *, reply: Reply, how: str) -> Score:
    if ok:
        return Score(1.0, f"the reply {how}")
    return Score(0.0, f"expected {quote(example.answer)}, the reply is {quote(reply.text)}")
