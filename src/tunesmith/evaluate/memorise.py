"""Does a model give its training answers back verbatim, more often than answers it never saw?

Not here: planted secrets (canaries). Called by cli.memorise. Held-out rows are the baseline: what is said alike by
everybody (a greeting, a quoted law) comes back from both. Greedy answers; Carlini et al. 2022, arXiv:2202.07646.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat import Example, label_set
from tunesmith.contender import Contender, Progress
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers.text import words
from tunesmith.evaluate.stats import mean_interval, rate_difference

RUN_WORDS = 20
RUN_CHARS = 50
SHORT_CHARS = 40  # a task whose median answer is shorter has right answers, not memorised ones


@dataclass(frozen=True, slots=True)
class Recall:
    """How much of one expected answer came back."""

    exact: bool
    run_words: int  # the longest run of words that both hold
    run_chars: int


# name -> (whether an answer is long enough to tell, whether it came back)
MEASURES: dict[str, tuple[Callable[[str], bool], Callable[[Recall], bool]]] = {
    "exact": (lambda answer: True, lambda recall: recall.exact),
    "run_20_words": (lambda answer: len(words(answer)) >= RUN_WORDS, lambda recall: recall.run_words >= RUN_WORDS),
    "run_50_chars": (lambda answer: len(answer) >= RUN_CHARS, lambda recall: recall.run_chars >= RUN_CHARS),
}


def why_meaningless(examples: Sequence[Example]) -> str | None:
    """Why verbatim answers say nothing on such a task; None when they do."""
    labels = label_set(examples)
    if labels:
        return f"The answers are {len(labels)} labels: giving one back is being right, not remembering."
    median = sorted(len(example.answer) for example in examples)[len(examples) // 2]
    if median < SHORT_CHARS:
        return f"Half of the answers are shorter than {SHORT_CHARS} characters: giving one back is being right."
    return None


def measure_memory(
    contender: Contender,
    train: Sequence[Example],
    *,
    held_out: Sequence[Example],
    max_new_tokens: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Of training and held-out rows, the shares that come back exactly, in a run of 20 words, in one of 50 characters.

    A run is only looked for in answers long enough to hold it. `{"rows", "exact", "run_20_words", "run_50_chars",
    "examples", "sentences"}`; each figure has both shares with intervals, and their difference with its p (Fisher).
    Raises InputError when a side has no row, or one row is on both.
    """
    if not train or not held_out:
        raise InputError("Memorisation is measured on training rows against held-out ones.", "Give a row of each.")
    if both := {example.prompt for example in train} & {example.prompt for example in held_out}:
        what = f"{len(both)} questions are in the training rows and in the held-out ones."
        raise InputError(what, "Hold out rows that were not trained: tunesmith split FILE.")
    rows = [*train, *held_out]
    replies = contender.answer([example.prompt for example in rows], max_new_tokens=max_new_tokens, progress=progress)
    recalls = [recall(example.answer, reply.text) for example, reply in zip(rows, replies, strict=True)]
    num_train = len(train)
    figures = {
        name: _compare(
            [hit(one) for row, one in zip(rows[:num_train], recalls, strict=False) if fits(row.answer)],
            [hit(one) for row, one in zip(held_out, recalls[num_train:], strict=True) if fits(row.answer)],
        )
        for name, (fits, hit) in MEASURES.items()
    }
    longest = sorted(range(num_train), key=lambda row: -recalls[row].run_chars)[:5]
    return {
        "rows": {"train": num_train, "held_out": len(held_out)},
        **figures,
        "examples": [
            {"expected": rows[row].answer, "reply": replies[row].text, **asdict(recalls[row])} for row in longest
        ],
        "sentences": [_sentence(name, figure) for name, figure in figures.items()],
    }


def recall(answer: str, reply: str) -> Recall:
    answer, reply = answer.strip(), reply.strip()
    wanted, got = ([word.casefold() for word in words(text)] for text in (answer, reply))
    return Recall(answer == reply, longest_run(wanted, got), longest_run(answer, reply))


def longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest stretch that stands in both. Halving finds it: a run of n holds one of n - 1."""

    def stretches(items: Sequence[str], length: int) -> set[object]:
        if isinstance(items, str):
            return {items[start : start + length] for start in range(len(items) - length + 1)}
        return {tuple(items[start : start + length]) for start in range(len(items) - length + 1)}

    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if stretches(a, middle) & stretches(b, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _compare(train: Sequence[bool], held_out: Sequence[bool]) -> dict[str, Any] | None:
    """None when a side has no row long enough."""
    if not train or not held_out:
        return None
    gap, low, high, p = rate_difference((sum(held_out), sum(train)), (len(held_out), len(train)))
    sides = {"train": train, "held_out": held_out}
    shares = {name: asdict(mean_interval(list(map(float, side)))) | {"rows": len(side)} for name, side in sides.items()}
    return {**shares, "difference": gap, "low": low, "high": high, "p": p}


def _sentence(name: str, figure: dict[str, Any] | None) -> str:
    what = {"exact": "word for word", "run_20_words": f"in a run of {RUN_WORDS} words", "run_50_chars":
            f"in a run of {RUN_CHARS} characters"}[name]  # fmt: skip
    if figure is None:
        return f"Too short to come back {what}: no answer of one side is as long."
    train, held_out = (f"{100 * figure[side]['mean']:.1f} %" for side in ("train", "held_out"))
    more = f"{100 * figure['difference']:+.1f} points, {100 * figure['low']:+.1f} to {100 * figure['high']:+.1f}"
    told = "memorised" if figure["p"] < 0.05 and figure["difference"] > 0 else "no memorisation can be seen"
    return f"{train} of training answers come back {what}, {held_out} of held-out ones ({more}): {told}."
