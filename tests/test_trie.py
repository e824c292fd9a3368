"""The trie gives what one row at a time gives: the loss and every gradient, on each family of models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import FAMILIES
from tunesmith.model import load_base
from tunesmith.nll import label_nll_N
from tunesmith.render import Rendered
from tunesmith.trie import lay_out

IDS = st.integers(3, 258)
MAX_EXAMPLES = 8  # of each family; a case costs three forward and backward passes


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Rendered], list[float]]:
    """Rows grown from one another: a new row takes a prefix of any earlier one, so prefixes are shared at every depth.
    Up to about 100 tokens, so that a sliding window of 64 is at work."""
    rows: list[list[int]] = [draw(st.lists(IDS, min_size=2, max_size=70))]
    for _ in range(draw(st.integers(1, 4))):
        parent = draw(st.sampled_from(rows))
        kept = draw(st.integers(0, len(parent)))
        rows.append([*parent[:kept], *draw(st.lists(IDS, min_size=2, max_size=30))])
    masks = [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows]
    masks[0][-1] = True
    weights = [draw(st.sampled_from([0.25, 1.0, 3.0])) for _ in rows]
    return [Rendered(tuple(row), tuple(mask)) for row, mask in zip(rows, masks, strict=True)], weights


def plain(model: Any, rows: list[Rendered], weights: list[float]) -> tuple[float, torch.Tensor]:
    """Stock causal forward and cross-entropy of each row on its own; loss and all gradients as one vector."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for row, weight in zip(rows, weights, strict=True):
        ids_BT = torch.tensor([row.ids])
        labels_T = torch.tensor([token if flag else -100 for token, flag in zip(row.ids, row.trained, strict=True)])
        logits_TV = model(input_ids=ids_BT).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits_TV, labels_T[1:], reduction="sum", ignore_index=-100) * weight
        if any(row.trained[1:]):
            loss.backward()
            total += loss.item()
    return total, gradient(model)


def on_trie(model: Any, rows: list[Rendered], weights: list[float], *, share: bool) -> tuple[float, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    trie = lay_out(rows, weights, share=share)
    loss = (label_nll_N(model, trie) * trie.weights_N).sum()
    loss.backward()
    return loss.item(), gradient(model)


def gradient(model: Any) -> torch.Tensor:
    parts = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()]
    return torch.cat(parts)


@cache
def trainable(folder: Path) -> Any:
    torch.set_num_threads(1)
    model = load_base(str(folder), precision="float32").model
    return model.requires_grad_(True)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "packed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_every_gradient_equal_one_row_at_a_time(
    name: str, share: bool, tiny_family: Callable[[str], Path]
) -> None:
    model = trainable(tiny_family(name))

    @settings(max_examples=MAX_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(batches())
    def check(batch: tuple[list[Rendered], list[float]]) -> None:
        rows, weights = batch
        loss, expected = plain(model, rows, weights)
        found_loss, found = on_trie(model, rows, weights, share=share)
        assert found_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-6

    check()


@settings(max_examples=60, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_the_layout_holds_each_prefix_once_in_any_order_of_the_rows(
    batch: tuple[list[Rendered], list[float]], random: Any
) -> None:
    rows, weights = batch
    order = list(range(len(rows)))
    random.shuffle(order)
    needed = [max((place for place in range(1, len(row.ids)) if row.trained[place]), default=0) for row in rows]
    prefixes = {row.ids[: end + 1] for row, length in zip(rows, needed, strict=True) for end in range(length)}
    tries = [lay_out(rows, weights), lay_out([rows[i] for i in order], [weights[i] for i in order])]
    for trie, owners in zip(tries, (range(len(rows)), order), strict=True):
        assert len(trie.ids_T) == len(prefixes)
        assert trie.num_sequence_tokens == sum(len(row.ids) for row in rows)
        assert {_path(trie, token) for token in range(len(trie.ids_T))} == prefixes
        labels = sorted(
            (owners[owner], (*_path(trie, row), label), weight)
            for row, label, weight, owner in zip(
                trie.rows_N.tolist(),
                trie.labels_N.tolist(),
                trie.weights_N.tolist(),
                trie.owners_N.tolist(),
                strict=True,
            )
        )
        assert labels == sorted(
            (i, row.ids[: place + 1], weights[i])
            for i, row in enumerate(rows)
            for place in range(1, len(row.ids))
            if row.trained[place]
        )


def _path(trie: Any, token: int) -> tuple[int, ...]:
    """The ids that a token sees, in the order of their positions: its own prefix."""
    places = torch.arange(len(trie.ids_T))
    seen = ((places <= token) & (token < trie.ends_T)).nonzero().flatten()
    positions = trie.positions_T[seen]
    assert positions.tolist() == list(range(len(seen)))
    return tuple(trie.ids_T[seen].tolist())


def test_the_order_of_the_rows_does_not_change_the_loss(tiny_base: Path) -> None:
    model = trainable(tiny_base)
    start = tuple(range(10, 40))
    rows = [Rendered((*start, *tail), (False,) * 30 + (True,) * len(tail)) for tail in ((5, 6), (5, 7, 8), (9,))]
    weights = [1.0, 2.0, 0.5]
    loss, grads = on_trie(model, rows, weights, share=True)
    again, grads_again = on_trie(model, rows[::-1], weights[::-1], share=True)
    assert again == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(grads, grads_again, rtol=1e-5, atol=1e-5)


def test_without_sharing_rows_lie_side_by_side() -> None:
    rows = [Rendered((5, 6, 7), (False, True, True))] * 3
    trie = lay_out(rows, [1.0] * 3, share=False)
    assert trie.ids_T.tolist() == [5, 6] * 3
    assert trie.ends_T.tolist() == [2, 2, 4, 4, 6, 6]
    assert lay_out(rows, [1.0] * 3).ids_T.tolist() == [5, 6]


def test_the_first_token_of_a_row_is_never_a_label() -> None:
    trie = lay_out([Rendered((5, 6), (True, True))], [1.0])
    assert trie.labels_N.tolist() == [6]
