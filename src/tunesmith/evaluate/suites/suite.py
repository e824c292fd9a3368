"""What a suite is: rows, and what is measured of a contender on them, by likelihood or by its replies.

Not here: which suites there are (catalog), comparisons (regress). Called by catalog, own and harness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.chat import Message
from tunesmith.contender import Contender, Progress, Reply, fits
from tunesmith.errors import InputError, RunError
from tunesmith.evaluate.choices import Question, choice_likelihoods, choice_scores

Values = Mapping[str, Sequence[float]]  # by measure, one for each row it is about, in the order of the rows


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a suite. `better` is +1 when more is better, -1 when less is, 0 when a change is only a change.

    `floor` is what guessing gives. One that is not `judged` is reported, and no verdict rests on it.
    """

    name: str
    words: str
    better: int = 1
    floor: float = 0.0
    unit: str = "points"  # of a difference: shares are told in percent points
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """What one contender did: the values of each measure, and a record of each row for people to read."""

    values: Values
    records: Sequence[Mapping[str, Any]] = ()


class Suite(Protocol):
    """Two contenders measured on the same suite have values for the same rows, in the same order."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def measures(self) -> Sequence[Measure]: ...

    def check(self, contender: Contender) -> None:
        """Raise InputError when this contender cannot be measured, before any is asked."""

    def measure(self, contender: Contender, *, progress: Progress | None = None) -> Measured: ...


@dataclass(frozen=True, slots=True)
class ChoiceSuite:
    """Multiple choice by log-likelihood. `acc` is judged; the others divide it by characters, bytes or tokens."""

    name: str
    questions: Sequence[Question]

    @property
    def rows(self) -> int:
        return len(self.questions)

    @property
    def measures(self) -> Sequence[Measure]:
        chance = sum(1 / len(question.choices) for question in self.questions) / len(self.questions)
        by = {"acc": "", "acc_norm": " (per character)", "acc_bytes": " (per byte)", "acc_tokens": " (per token)"}
        return [Measure(name, f"right{how}", floor=chance, judged=name == "acc") for name, how in by.items()]

    def check(self, contender: Contender) -> None:
        from tunesmith.evaluate.likelihood import check_likelihoods

        check_likelihoods(contender)

    def measure(self, contender: Contender, *, progress: Progress | None = None) -> Measured:
        found = choice_likelihoods(contender, self.questions, progress=progress)
        scores = [choice_scores(question, one) for question, one in zip(self.questions, found, strict=True)]
        records = [
            {"question": question.context, "choices": question.choices, "answer": question.answer, **score,
             "logprobs": [-choice.nats for choice in one]}
            for question, one, score in zip(self.questions, found, scores, strict=True)
        ]  # fmt: skip
        return Measured({name: [score[name] for score in scores] for name in scores[0]}, records)


@dataclass(frozen=True, slots=True)
class ReplySuite:
    """Questions that are answered in words, and how all replies together become values."""

    name: str
    measures: Sequence[Measure]
    prompts: Sequence[Sequence[Message]]
    max_new_tokens: int
    score: Callable[[Sequence[Reply]], Values]

    @property
    def rows(self) -> int:
        return len(self.prompts)

    def check(self, contender: Contender) -> None:
        for prompt in self.prompts:
            if not fits(contender, prompt, max_new_tokens=self.max_new_tokens):
                what = (
                    f"A question of {self.name} and {self.max_new_tokens} tokens of reply do not fit {contender.name}."
                )
                raise InputError(what, "Nothing is trimmed: leave this suite out.")

    def measure(self, contender: Contender, *, progress: Progress | None = None) -> Measured:
        replies = contender.answer(self.prompts, max_new_tokens=self.max_new_tokens, progress=progress)
        if len(replies) != len(self.prompts):
            what = f"{contender.name} gave {len(replies)} replies to {len(self.prompts)} prompts of {self.name}."
            raise RunError(what, "Nothing was compared.")
        records = [
            {"question": prompt[-1].content, "reply": reply.text, "finish_reason": reply.finish_reason}
            for prompt, reply in zip(self.prompts, replies, strict=True)
        ]
        return Measured(self.score(replies), records)
