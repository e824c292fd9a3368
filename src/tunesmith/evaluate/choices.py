"""Multiple choice by log-likelihood: which of the given answers a local model finds likeliest, as in lm-eval.

Not here: the questions (suites), averages (regress). Called by the suites. No chat template, as published figures: what
is known is measured apart from how it is said. A question is computed once for all its choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.contender import Contender, Progress
from tunesmith.errors import InputError
from tunesmith.evaluate.likelihood import Likelihood, check_likelihoods, opened

if TYPE_CHECKING:
    from tunesmith.render import Rendered

CHUNK = 16  # questions between two calls of `progress`


@dataclass(frozen=True, slots=True)
class Question:
    """The text before the answer (`Question: ...\\nAnswer:`), the possible answers, and the place of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


def choice_likelihoods(
    contender: Contender, questions: Sequence[Question], *, progress: Progress | None = None
) -> list[list[Likelihood]]:
    """Of every choice of every question, after its context and a space, without the chat template.

    Raises InputError for a contender that tells no probabilities, or a question that does not fit its context.
    """
    from tunesmith.nll import sequence_nats

    check_likelihoods(contender)
    found = []
    with opened(contender) as (base, model):
        tokenizer = base.renderer.tokenizer
        rows = [[_encode(tokenizer, question.context, choice) for choice in question.choices] for question in questions]
        longest, limit = max((len(one.ids) for row in rows for one in row), default=0), base.facts.max_positions
        if longest > limit:
            what = f"A question and its answer have {longest} tokens, {base.name} takes {limit}."
            raise InputError(what, "Nothing is trimmed: leave the question out.")
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            nats = iter(sequence_nats(model, [one for row in chunk for one in row]))
            found += [[Likelihood(next(nats), one.num_trained) for one in row] for row in chunk]
            if progress:
                progress(len(chunk))
    return found


def choice_scores(question: Question, likelihoods: Sequence[Likelihood]) -> dict[str, float]:
    """1 or 0 by how the choices are ranked: `acc` by log p, `acc_norm` by log p per character, `acc_bytes` per byte
    (the harness's names), `acc_tokens` per token. Of equals the first wins."""
    lengths = {
        "acc": [1] * len(question.choices),
        "acc_norm": [len(choice) for choice in question.choices],
        "acc_bytes": [len(choice.encode()) for choice in question.choices],
        "acc_tokens": [one.tokens for one in likelihoods],
    }
    return {name: float(_least(likelihoods, by) == question.answer) for name, by in lengths.items()}


def _least(likelihoods: Sequence[Likelihood], lengths: Sequence[int]) -> int:
    return min(range(len(lengths)), key=lambda place: likelihoods[place].nats / lengths[place])


def _encode(tokenizer: Any, context: str, choice: str) -> Rendered:
    """Context and choice are tokenised together and cut where the context alone ends; the special tokens are those the
    tokenizer puts of itself (lm-evaluation-harness 0.4.13, api/model.py, `_encode_pair`)."""
    from tunesmith.render import Rendered

    ids = tokenizer.encode(f"{context} {choice}")
    start = min(len(tokenizer.encode(context)), len(ids) - 1)  # a choice has a token of its own at least
    return Rendered(tuple(ids), (False,) * start + (True,) * (len(ids) - start))
