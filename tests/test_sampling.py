"""Drawing tokens: seeds, nuclei, penalties, biases, grammars and log-probabilities."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.sampling import Drawing, Sampling, pick


def drawn(sampling: Sampling, logits_V: torch.Tensor, num: int) -> list[int]:
    drawing = Drawing(sampling)
    return [drawing.draw(logits_V).id for _ in range(num)]


def test_a_seed_repeats_what_is_drawn_and_another_draws_otherwise() -> None:
    logits_V = torch.zeros(50)
    before = torch.get_rng_state()
    first, again, other = (drawn(Sampling(1.0, 0.95, seed), logits_V, 16) for seed in (1, 1, 2))
    assert first == again != other
    assert drawn(Sampling(1.0), logits_V, 16) != drawn(Sampling(1.0), logits_V, 16)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is left alone


def test_temperature_0_takes_the_best_and_top_p_leaves_out_the_tail() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert pick(logits_V, Sampling(), generator=generator) == 0
    found = {pick(logits_V, Sampling(1.0, 0.75), generator=generator) for _ in range(200)}
    assert found == {0, 1}
    assert {pick(logits_V, Sampling(1.0, 0.01), generator=generator) for _ in range(20)} == {0}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.integers(2, 700))
def test_a_nucleus_is_that_of_the_whole_vocabulary_sorted(seed: int, top_p: float, size: int) -> None:
    logits_V = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    best, order = torch.softmax(logits_V, -1).sort(descending=True)
    nucleus = set(order[(best.cumsum(-1) - best) < top_p].tolist())
    generator = torch.Generator().manual_seed(seed)
    assert {pick(logits_V, Sampling(1.0, top_p), generator=generator) for _ in range(30)} <= nucleus


def test_penalties_count_the_replys_own_tokens() -> None:
    logits_V = torch.tensor([1.0, 0.9, 0.5, 0.0])
    assert drawn(Sampling(presence_penalty=0.3), logits_V, 4) == [0, 1, 0, 0]
    assert drawn(Sampling(frequency_penalty=0.3), logits_V, 4) == [0, 1, 0, 1]
    assert drawn(Sampling(), logits_V, 2) == [0, 0]


def test_a_bias_is_added_and_log_probabilities_are_of_the_model() -> None:
    logits_V = torch.tensor([2.0, 1.0, 0.0])
    token = Drawing(Sampling(logit_bias=((2, 100.0), (0, -100.0)), top_logprobs=2)).draw(logits_V)
    assert token.id == 2
    expected = torch.log_softmax(logits_V, -1).tolist()
    assert token.logprob == expected[2]
    assert token.top == ((0, expected[0]), (1, expected[1]))


class EvenOnly:
    def __init__(self) -> None:
        self.accepted: list[int] = []

    def allowed(self) -> bytes:
        return bytes([0b01010101])  # of the first 8 tokens; those beyond are not allowed

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_grammar_leaves_only_what_it_allows_and_sees_what_was_drawn() -> None:
    grammar = EvenOnly()
    drawing = Drawing(Sampling(1.0, seed=3), constraint=grammar)
    found = [drawing.draw(torch.zeros(12)).id for _ in range(60)]
    assert set(found) == {0, 2, 4, 6} and grammar.accepted == found
