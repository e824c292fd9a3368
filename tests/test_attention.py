"""Attention in tiles, and by FlexAttention, is masked softmax attention over each token's own path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_trie import batches
from tunesmith import attention
from tunesmith.attention import TriePlan
from tunesmith.render import Rendered
from tunesmith.trie import Trie, lay_out

H, K, D = 4, 2, 16
SCALING = 0.3


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 7])
@settings(max_examples=15, deadline=None)
@given(batch=batches(), share=st.booleans(), max_scores=st.sampled_from([1, 1 << 14, 1 << 24]))
def test_tiles_give_dense_attention_and_its_gradients(
    window: int | None, softcap: float | None, batch: Any, share: bool, max_scores: int
) -> None:
    trie = lay_out(*batch, share=share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MAX_SCORES", max_scores)  # one tile a product, several, all
        _assert_same(_in_tiles, trie, window, softcap)


def test_weights_are_computed_again_for_wide_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KEEP_KEYS", 0)
    _assert_same(_in_tiles, _some_trie(), None, None)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 7])
def test_flex_attention_gives_the_same(window: int | None, softcap: float | None) -> None:
    """Forward only: FlexAttention has no backward pass on a processor."""
    trie = _some_trie()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, len(trie.ids_T), D) for heads in (H, K, K))
    mask = TriePlan(trie, H).block_mask(window)
    found = attention._flex(q, k, v, block_mask=mask, scaling=SCALING, softcap=softcap)
    torch.testing.assert_close(found, _dense(q, k, v, trie, window, softcap), rtol=1e-4, atol=2e-5)


def test_a_long_shared_prefix_costs_scores_only_on_paths() -> None:
    """Not T x T: 20 branches of 30 tokens on a prefix of 200 see about 230 keys each, not 800."""
    rows = [Rendered((*range(200), *[1000 + i] * 31), (False,) * 200 + (True,) * 31) for i in range(20)]
    trie = lay_out(rows, [1.0] * 20)
    computed = sum(group.mask_ntS.numel() for group in attention.cut_tiles(trie, None, num_heads=1, num_kv_heads=1))
    assert len(trie.ids_T) == 800
    assert computed < 0.4 * 800 * 800


def _some_trie() -> Trie:
    start = tuple(range(40))
    rows = [start + (50 + i,) * 20 for i in range(3)] + [start[:9] + (70,) * 50]
    return lay_out([Rendered(row, (False,) * 5 + (True,) * (len(row) - 5)) for row in rows], [1.0] * 4)


def _in_tiles(q: Any, k: Any, v: Any, trie: Trie, window: int | None, softcap: float | None) -> torch.Tensor:
    plan = TriePlan(trie, H)
    out, _ = attention._attend(
        None, q, k, v, None, scaling=SCALING, trie_plan=plan, sliding_window=window, softcap=softcap
    )
    return out


def _dense(q: Any, k: Any, v: Any, trie: Trie, window: int | None, softcap: float | None) -> torch.Tensor:
    i, j = torch.arange(len(trie.ids_T))[:, None], torch.arange(len(trie.ids_T))
    sees_TT = (j <= i) & (i < trie.ends_T)
    if window:
        sees_TT &= trie.positions_T[:, None] - trie.positions_T < window
    scores = q @ k.repeat_interleave(H // K, dim=1).transpose(2, 3) * SCALING
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores.masked_fill(~sees_TT, float("-inf")), dim=-1)
    return (weights @ v.repeat_interleave(H // K, dim=1)).transpose(1, 2)


def _assert_same(compute: Any, trie: Trie, window: int | None, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    T = len(trie.ids_T)
    shapes = [(1, H, T, D), (1, K, T, D), (1, K, T, D), (1, T, H, D)]
    *inputs, slope = [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]
    results = []
    for form in (compute, _dense):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = form(*leaves, trie, window, softcap)
        results.append([out.detach(), *torch.autograd.grad((out * slope).sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
