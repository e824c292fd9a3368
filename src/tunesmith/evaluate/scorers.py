"""Scorers: (example, reply) -> a score from 0 to 1 with an explanation, and the registry of factories by name.

Not here: averages and intervals (stats), asking contenders (run), model-graded scores.
Called by cli.evaluate and cli.train through `make_scorer`; `run.evaluate` calls the scorers themselves.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.errors import InputError

SHOWN = 60  # characters of a text quoted in an explanation
NOT_JSON = object()


@dataclass(frozen=True, slots=True)
class Score:
    """How good a reply is, 0 to 1, and why in one plain sentence."""

    value: float
    why: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a score lies between 0 and 1, not {self.value!r}")


Scorer = Callable[[Example, Reply], Score]
Factory = Callable[[str, Sequence[str]], Scorer]  # (the text after the colon, the labels) -> Scorer


def make_scorer(spec: str, *, labels: Sequence[str] | None = None) -> Scorer:
    """The scorer that `spec` names: a key of SCORERS, with `:argument` for `regex`.

    Raises InputError for an unknown name (naming the nearest one), a bad or missing argument, or missing labels.
    """
    name, colon, argument = spec.partition(":")
    if name not in SCORERS:
        raise InputError(f"There is no scorer {name!r}.", _nearest_scorer(name))
    if name == "regex" and not argument:
        raise InputError("The scorer 'regex' needs a pattern.", "Write it as regex:PATTERN.")
    if name != "regex" and colon:
        raise InputError(f"The scorer {name!r} takes no argument, {argument!r} was given.", f"Write only {name}.")
    return SCORERS[name](argument, labels or ())


def normalise(text: str) -> str:
    """NFKC, case folded; each run of white space, punctuation and `_` becomes one space. Symbols such as + stay."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (
        "" if unicodedata.category(char) == "Cf" else " " if unicodedata.category(char)[0] in "PZC" else char
        for char in folded
    )
    return " ".join("".join(kept).split())


def _nearest_scorer(name: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), SCORERS, n=1, cutoff=0.4)
    return f"Did you mean {near[0]!r}? Known: {', '.join(SCORERS)}." if near else f"Known: {', '.join(SCORERS)}."


def _quote(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= SHOWN else flat[: SHOWN - 1] + "…")


def _match(ok: bool, *, expected: str, text: str, how: str) -> Score:
    if ok:
        return Score(1.0, f"the reply {how}")
    return Score(0.0, f"expected {_quote(expected)}, the reply is {_quote(text)}")


def _exact(argument: str, labels: Sequence[str]) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        return _match(
            reply.text.strip() == example.answer.strip(),
            expected=example.answer,
            text=reply.text,
            how="equals the expected answer",
        )

    return score


def _normalised(argument: str, labels: Sequence[str]) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        wanted, got = normalise(example.answer), normalise(reply.text)
        # Two texts of punctuation only both become "": compare them as they are.
        same = wanted == got if wanted or got else example.answer.strip() == reply.text.strip()
        return _match(same, expected=example.answer, text=reply.text, how="equals the expected answer once normalised")

    return score


def _contains(argument: str, labels: Sequence[str]) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        wanted, got = normalise(example.answer), normalise(reply.text)
        if not wanted:
            found = example.answer.strip() in reply.text
        elif any(char >= "\u0e00" for char in wanted):  # Thai, Chinese, Japanese ...: words are not divided by spaces
            found = wanted in got
        else:
            found = f" {wanted} " in f" {got} "
        if found:
            return Score(1.0, "the expected answer occurs in the reply")
        return Score(0.0, f"{_quote(example.answer)} does not occur in the reply {_quote(reply.text)}")

    return score


def _json(argument: str, labels: Sequence[str]) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        wanted = _leaves_of_answer(example)
        value, why = _read_json(reply.text)
        if value is NOT_JSON:
            return Score(0.0, why)
        got = _leaves(value)
        for path in [*wanted, *got]:
            if wanted.get(path) != got.get(path):
                what = f"expected {wanted.get(path, 'nothing')}, the reply has {got.get(path, 'nothing')}"
                return Score(0.0, f"at {_path(path)}: {what}")
        return Score(1.0, "the reply is the same JSON as the expected answer")

    return score


def _json_valid(argument: str, labels: Sequence[str]) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        value, why = _read_json(reply.text)
        if value is NOT_JSON:
            return Score(0.0, why)
        if not isinstance(value, dict):
            return Score(0.0, f"the reply is JSON, but a {type(value).__name__} and not an object")
        return Score(1.0, "the reply is a JSON object")

    return score


def _json_fields(argument: str, labels: Sequence[str]) -> Scorer:
    """F1 = 2·|both| / (|expected| + |reply|) over the leaves path=value (Manning et al. 2008, section 8.3)."""

    def score(example: Example, reply: Reply) -> Score:
        wanted = _leaves_of_answer(example)
        value, why = _read_json(reply.text)
        if value is NOT_JSON:
            return Score(0.0, why)
        got = _leaves(value)
        both = len(wanted.items() & got.items())
        why = f"{both} of {len(wanted)} expected fields are right, {len(got) - both} of the reply are wrong or extra"
        return Score(2 * both / (len(wanted) + len(got)), why)

    return score


def _label(argument: str, labels: Sequence[str]) -> Scorer:
    if not labels:
        raise InputError(
            "The scorer 'label' needs the list of labels.", "Use it on a task whose answers are labels, or use 'exact'."
        )
    known = [label.strip() for label in labels]
    allowed = frozenset(known)

    def score(example: Example, reply: Reply) -> Score:
        text = reply.text.strip()
        if text in allowed:
            return Score(1.0, "the reply is one of the labels")
        return Score(0.0, f"{_quote(text)} is not one of the {len(allowed)} labels")

    return score


def _stopped(argument: str, labels: Sequence[str]) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        if reply.stopped:
            return Score(1.0, "the model ended its turn")
        return Score(0.0, f"the reply ended by {reply.finish_reason!r} after {reply.completion_tokens} tokens")

    return score


def _regex(argument: str, labels: Sequence[str]) -> Scorer:
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
        return Score(0.0, f"the reply {_quote(reply.text)} does not match {argument!r}")

    return score


SCORERS: dict[str, Factory] = {
    "exact": _exact,
    "normalised": _normalised,
    "contains": _contains,
    "json": _json,
    "json_valid": _json_valid,
    "json_fields": _json_fields,
    "label": _label,
    "stopped": _stopped,
    "regex": _regex,
}


def _read_json(text: str) -> tuple[Any, str]:
    """(value, "") or (NOT_JSON, why). Strict: NaN, code fences and text around the value are refused."""
    try:
        return json.loads(text, parse_constant=_refuse_constant), ""
    except (ValueError, RecursionError) as error:
        hint = "it stands in a ``` fence" if text.lstrip().startswith("```") else str(error) or type(error).__name__
        return NOT_JSON, f"the reply is not JSON: {hint}"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _leaves_of_answer(example: Example) -> dict[tuple[str, ...], str]:
    value, why = _read_json(example.answer)
    if value is NOT_JSON:
        why = why.replace("the reply", "the expected answer", 1)
        raise InputError(f"A JSON scorer cannot be used here: {why}.", "Use another scorer, or mend the row.")
    return _leaves(value)


def _leaves(value: Any) -> dict[tuple[str, ...], str]:
    """Path -> JSON text of each leaf. An empty object or list is a leaf; 1 and 1.0 are one number, true and 1 are not.

    Not recursive: a reply may nest deeper than Python's stack.
    """
    leaves = {}
    todo: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while todo:
        path, item = todo.pop()
        if isinstance(item, dict) and item:
            todo.extend(reversed([((*path, f".{key}"), part) for key, part in item.items()]))
        elif isinstance(item, list) and item:
            todo.extend(reversed([((*path, f"[{index}]"), part) for index, part in enumerate(item)]))
        else:
            whole = isinstance(item, float) and item.is_integer()
            leaves[path] = json.dumps(int(item) if whole else item, ensure_ascii=False)
    return leaves


def _path(path: tuple[str, ...]) -> str:
    return "".join(path).removeprefix(".") or "the top"
