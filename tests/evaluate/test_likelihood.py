"""The likelihood of an answer is the model's own, as the contender asks it; similarity is the cosine of its vectors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.chat import Message
from tunesmith.contender import PromptedContender, Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.likelihood import answer_likelihoods
from tunesmith.evaluate.run import evaluate
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.scorers.model import Similarity
from tunesmith.evaluate.scorers.score import Asked
from tunesmith.generate import LocalContender
from tunesmith.model import load_base
from tunesmith.remote import UrlContender


@pytest.fixture(scope="module")
def local(tiny_base: Path) -> LocalContender:
    return LocalContender("base:tiny", load_base(str(tiny_base), precision="float32"))


def plain_nats(contender: LocalContender, prompt: tuple[Message, ...], answer: str) -> float:
    """The textbook way: one row, one forward pass, log-softmax."""
    import torch

    renderer = contender.base.renderer
    start = renderer.prompt(prompt)
    ids = [
        *start,
        *renderer.tokenizer.encode(answer, add_special_tokens=False),
        *renderer.tokenizer.encode("<|im_end|>"),
    ]
    with torch.inference_mode():
        log_p_TV = torch.log_softmax(contender.model(torch.tensor([ids])).logits[0].float(), -1)
    return -sum(float(log_p_TV[place - 1, ids[place]]) for place in range(len(start), len(ids)))


def test_likelihoods_are_those_of_one_row_at_a_time(local: LocalContender) -> None:
    rows = [
        label_example("my card is lost", "card"),
        label_example("I want money", "refund now"),
        label_example("x", "y"),
    ]
    found = answer_likelihoods(local, [row.prompt for row in rows], answers=[row.messages[-1] for row in rows])
    for row, one in zip(rows, found, strict=True):
        assert one.nats == pytest.approx(plain_nats(local, row.prompt, row.answer), abs=1e-3)
        assert one.tokens == len(row.answer) + 1


def test_a_wrapper_is_asked_as_it_would_answer(local: LocalContender) -> None:
    row = label_example("my card is lost", "card")
    prompted = PromptedContender(local, "Answer in one word.", name="prompted")
    (found,) = answer_likelihoods(prompted, [row.prompt], answers=[row.messages[-1]])
    asked = (Message("system", "Answer in one word."), *row.prompt[1:])
    assert found.nats == pytest.approx(plain_nats(local, asked, "card"), abs=1e-3)
    assert prompted.inner is local


def test_the_loss_scorer_reports_loss_and_perplexity_over_all_tokens(local: LocalContender) -> None:
    rows = [label_example("my card is lost", "card"), label_example("I want money", "refund")]
    evaluation = evaluate(rows, [local], scorers={"loss": make_scorer("loss")}, max_new_tokens=2)
    figures = evaluation.answers[0].aggregates["loss"].figures
    nats = [plain_nats(local, row.prompt, row.answer) for row in rows]
    assert figures["loss"].mean == pytest.approx(sum(nats) / (5 + 7), abs=1e-3)
    assert figures["perplexity"].mean == pytest.approx(math.exp(figures["loss"].mean))
    assert evaluation.answers[0].values("loss")[0] == pytest.approx(math.exp(-nats[0] / 5), abs=1e-4)


def test_a_contender_that_tells_no_probabilities_is_refused_before_anyone_is_asked(local: LocalContender) -> None:
    silent = Fixed("x", [])
    with pytest.raises(InputError, match="cannot say how likely"):
        evaluate([label_example("q", "a")], [silent], scorers={"loss": make_scorer("loss")}, max_new_tokens=2)
    assert silent.asked == []
    with pytest.raises(InputError, match="url:http://localhost/v1#m cannot say"):
        answer_likelihoods(UrlContender("http://localhost/v1", "m"), [], answers=[])


def test_a_row_that_does_not_fit_is_refused_and_never_trimmed(local: LocalContender) -> None:
    row = label_example("x" * 600, "card")
    with pytest.raises(InputError, match="takes 512"):
        answer_likelihoods(local, [row.prompt], answers=[row.messages[-1]])


def test_similarity_is_the_cosine_and_an_empty_reply_is_near_nothing() -> None:
    vectors = {"a": [1.0, 0.0], "b": [3.0, 4.0], "c": [-1.0, 0.0], " ": [1.0, 0.0]}
    scorer = Similarity(lambda texts: np.array([vectors[text] for text in texts]))
    replies = [Reply(text, 1, 1, 0.1, "stop") for text in ("a", "b", "c", " ")]
    scores = scorer.score_rows(Asked([label_example("q", "a")] * 4, replies, Fixed("x", []), replies)).scores
    assert [score.value for score in scores] == pytest.approx([1.0, 0.6, 0.0, 0.0])


@pytest.mark.slow
def test_the_packaged_sentence_model_finds_a_paraphrase_nearer_than_another_topic() -> None:
    scorer = make_scorer("similarity")
    row = label_example("q", "Your parcel will arrive on Monday.")
    near, far = (
        scorer(row, Reply(text, 1, 1, 0.1, "stop")).value for text in ("It is delivered Monday.", "Eat more fruit.")
    )
    assert near > 0.5 > far
