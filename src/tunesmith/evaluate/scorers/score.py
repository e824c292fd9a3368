"""What a scorer is: (example, reply) -> a score from 0 to 1 with its reason, and what it may add over all rows.

Not here: any scorer; their names (the package's __init__). Called by every scorer and by evaluate.run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.chat import Example
from tunesmith.contender import Contender, Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.stats import Interval

SHOWN = 60  # characters of a text quoted in an explanation


@dataclass(frozen=True, slots=True)
class Score:
    """How good a reply is, 0 to 1, and why in one plain sentence."""

    value: float
    why: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise ValueError(f"a score lies between 0 and 1, not {self.value!r}")


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What only all rows together tell: figures with intervals (not always 0 to 1), tables, and what must be said."""

    figures: Mapping[str, Interval] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    sentences: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Asked:
    """One contender, its reply to every example, and the replies it is compared with: the first contender's."""

    examples: Sequence[Example]
    replies: Sequence[Reply]
    contender: Contender
    first: Sequence[Reply]
    is_first: bool = True
    is_alone: bool = True  # no other contender was asked


@dataclass(frozen=True, slots=True)
class Scored:
    scores: list[Score]
    aggregate: Aggregate = Aggregate()


class Scorer:
    """Scores one reply by calling it, or all replies of a contender at once.

    Most are a plain function. Those that need a model, the contender itself or its rivals override `score_rows`.
    """

    def __init__(
        self,
        score: Callable[[Example, Reply], Score],
        *,
        aggregate: Callable[[Sequence[Example], Sequence[Reply]], Aggregate] | None = None,
    ) -> None:
        self._score = score
        self._aggregate = aggregate

    def __call__(self, example: Example, reply: Reply) -> Score:
        return self._score(example, reply)

    def check(self, example: Example) -> None:
        """Raise InputError when this row cannot be scored: tried on the expected answer, before anyone is asked."""
        self(example, Reply(example.answer, 0, 0, 0.0, "stop"))

    def check_contender(self, contender: Contender) -> None:
        """Raise InputError when this contender cannot be scored, before anyone is asked."""

    def of_first(self, rows: int) -> Scored | None:
        """What the first of several contenders has, where the others are compared with it; None for most scorers."""
        return None

    def score_rows(self, asked: Asked) -> Scored:
        scores = [self(example, reply) for example, reply in zip(asked.examples, asked.replies, strict=True)]
        return Scored(scores, self._aggregate(asked.examples, asked.replies) if self._aggregate else Aggregate())


@dataclass(frozen=True, slots=True)
class Given:
    """What a factory may need beside its argument: the task's labels, and how a contender is built from its line."""

    labels: Sequence[str]
    build: Callable[[str], Contender]


Factory = Callable[[str, Given], Scorer]  # (the text after the colon, what else there is) -> Scorer


def quote(text: str) -> str:
    """The text on one line, shortened."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= SHOWN else flat[: SHOWN - 1] + "…")


def read_argument_file(path: str, *, scorer: str) -> str:
    """The text of a file that a scorer was given; InputError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file of the scorer {scorer!r} cannot be read: {error}.", "Check its path.") from error
