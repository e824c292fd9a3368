"""Multiple choice by likelihood: the textbook computation, ranked as lm-evaluation-harness ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.contender import Contender
from tunesmith.errors import InputError
from tunesmith.evaluate.choices import Question, choice_likelihoods, choice_scores
from tunesmith.evaluate.likelihood import Likelihood
from tunesmith.generate import LocalContender
from tunesmith.model import load_base
from tunesmith.remote import UrlContender

QUESTIONS = [
    Question("Question: What is red?\nAnswer:", ("a rose", "the sky", "grass", "a rose garden"), 0),
    Question("Question: Is water wet?\nAnswer:", ("no", "yes"), 1),
]


@pytest.fixture(scope="module")
def local(tiny_base: Path) -> LocalContender:
    return LocalContender("base:tiny", load_base(str(tiny_base), precision="float32"))


def plain_nats(contender: LocalContender, context: str, choice: str) -> float:
    import torch

    tokenizer = contender.base.renderer.tokenizer
    start, ids = len(tokenizer.encode(context)), tokenizer.encode(f"{context} {choice}")
    with torch.inference_mode():
        log_p_TV = torch.log_softmax(contender.model(torch.tensor([ids])).logits[0].float(), -1)
    return -sum(float(log_p_TV[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_likelihoods_are_those_of_one_choice_at_a_time(local: LocalContender) -> None:
    done: list[int] = []
    found = choice_likelihoods(local, QUESTIONS, progress=done.append)
    for question, row in zip(QUESTIONS, found, strict=True):
        for choice, one in zip(question.choices, row, strict=True):
            assert one.nats == pytest.approx(plain_nats(local, question.context, choice), abs=1e-3)
            assert one.tokens == len(choice) + 1  # a byte a token, and the space before
    assert sum(done) == 2


def test_each_ranking_divides_by_its_own_length() -> None:
    question = Question("Q:", ("ab", "é" * 4, "abcdefgh"), 0)
    likelihoods = [Likelihood(4.0, 2), Likelihood(6.0, 8), Likelihood(15.9, 3)]
    assert choice_scores(question, likelihoods) == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 0.0, "acc_tokens": 0.0}
    by_char = Question("Q:", question.choices, 1)
    assert choice_scores(by_char, likelihoods) == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 1.0, "acc_tokens": 1.0}
    assert choice_scores(Question("Q:", ("a", "b"), 1), [Likelihood(1.0, 1)] * 2)["acc"] == 0.0  # the first of equals


def test_what_cannot_be_scored_is_refused(local: LocalContender) -> None:
    remote: Contender = UrlContender("http://localhost/v1", "m")
    with pytest.raises(InputError, match="cannot say how likely"):
        choice_likelihoods(remote, QUESTIONS)
    with pytest.raises(InputError, match="takes 512"):
        choice_likelihoods(local, [Question("x" * 600, ("a", "b"), 0)])
