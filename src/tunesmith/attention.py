"""Attention over a trie: every token attends to its own path, computed in tiles that hold little else.

Not here: the layout (trie), attention to a cached prompt while decoding (prefix). Plugs into transformers' attention
registry; called by nll. On an accelerator FlexAttention computes the same from the same trie.
Axes: H heads, K key-value heads, G = H / K, T tokens, t tokens of a tile, S keys of a tile, n tiles, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from tunesmith.trie import Trie

NAME = "tunesmith_trie"
TILE = 32  # tokens
WASTE = 1.3  # tiles are padded to one product as long as it computes at most this many times the scores they need
MAX_SCORES = 1 << 18  # of one product: what is computed from them is still in the cache
KEEP_KEYS = 256  # weights of tiles with at most so many keys are kept for the backward pass


@dataclass(frozen=True, slots=True)
class Tiles:
    """Neighbouring tiles with similar numbers of keys. `numbers` says which: tile i holds the tokens `t * i ...`.
    `keys_nS` are the tokens that each may see (padded with token 0); `mask_ntS` is added to the scores."""

    numbers: slice
    keys_nS: torch.Tensor
    mask_ntS: torch.Tensor


@dataclass(slots=True)
class TriePlan:
    """What the layers of one forward share: the trie, and how attention over it is cut, by sliding window."""

    trie: Trie
    num_heads: int
    by_window: dict[int | None, Any] = field(default_factory=dict)

    def tiles(self, window: int | None) -> list[Tiles]:
        if window not in self.by_window:
            self.by_window[window] = cut_tiles(self.trie, window, num_heads=self.num_heads)
        return self.by_window[window]

    def block_mask(self, window: int | None) -> Any:
        if window not in self.by_window:
            self.by_window[window] = _block_mask(self.trie, window)
        return self.by_window[window]


@contextlib.contextmanager
def attending_over(model: Any, trie: Trie) -> Iterator[dict[str, Any]]:
    """Switch the model's attention to the trie's; yields the keywords to pass to its forward."""
    _register()
    config = model.config.get_text_config()
    with attention_named(NAME, config):
        yield {"position_ids": trie.positions_T[None], "trie_plan": TriePlan(trie, config.num_attention_heads)}


@contextlib.contextmanager
def attention_named(name: str, config: Any) -> Iterator[None]:
    """While open, a model with this config computes the attention registered under `name`."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def cut_tiles(trie: Trie, window: int | None, *, num_heads: int) -> list[Tiles]:
    """Cut the tokens, in order, into tiles, and find the keys of each.

    In depth-first order a token before the tile that any token of the tile descends from is an ancestor of the tile's
    first token too: the path to that token and the tile itself are all the keys there are.
    """
    ends, positions = trie.ends_T.cpu().numpy(), trie.positions_T.cpu().numpy()
    keys: list[np.ndarray] = []
    for start in range(0, len(ends), TILE):
        rows = np.arange(start, min(start + TILE, len(ends)))
        path = np.flatnonzero(ends[:start] > start)  # the token at depth d stands at place d
        if window:
            path = path[max(0, positions[rows].min() - window + 1) :]
        keys.append(np.concatenate([path, rows]))
    groups = []
    first = 0
    for number in range(1, len(keys) + 1):
        sizes = [len(tile) for tile in keys[first : number + 1]]
        padded = max(sizes) * len(sizes)
        if number == len(keys) or padded > WASTE * sum(sizes) or num_heads * TILE * padded > MAX_SCORES:
            groups.append(_pad(keys, slice(first, number), ends=ends, positions=positions, window=window))
            first = number
    return groups


def _pad(
    keys: list[np.ndarray], numbers: slice, *, ends: np.ndarray, positions: np.ndarray, window: int | None
) -> Tiles:
    n, width = numbers.stop - numbers.start, max(len(tile) for tile in keys[numbers])
    keys_nS = np.zeros((n, width), dtype=np.int64)
    mask_ntS = np.full((n, TILE, width), -np.inf, dtype=np.float32)
    for place, seen in enumerate(keys[numbers]):
        start = (numbers.start + place) * TILE
        rows = np.arange(start, min(start + TILE, len(ends)))
        sees = (seen <= rows[:, None]) & (rows[:, None] < ends[seen])
        if window:
            sees &= positions[rows][:, None] - positions[seen] < window
        keys_nS[place, : len(seen)] = seen
        mask_ntS[place, : len(rows), : len(seen)][sees] = 0
        mask_ntS[place, len(rows) :, 0] = 0  # a row of padding sees something, so that it stays finite
    return Tiles(numbers, torch.from_numpy(keys_nS), torch.from_numpy(mask_ntS))


class _TileAttention(torch.autograd.Function):
    """Softmax attention, tile by tile. The weights of wide tiles are computed again in the backward pass, so that
    memory holds little more than queries, keys and values."""

    @staticmethod
    def forward(
        ctx: Any, q_THD: torch.Tensor, k_KTD: torch.Tensor, v_KTD: torch.Tensor, tiles: list[Tiles], softcap: float
    ) -> torch.Tensor:
        q = _in_tiles(q_THD, len(k_KTD))
        output = torch.empty_like(q)
        kept: list[torch.Tensor | None] = []
        for group in tiles:
            weights, _ = _weights(_queries(q, group), _keys(k_KTD, group), group.mask_ntS, softcap)
            output[group.numbers] = _from_products(torch.bmm(weights, _keys(v_KTD, group)), output.shape)
            if group.keys_nS.shape[1] <= KEEP_KEYS and not softcap and any(ctx.needs_input_grad):
                kept.append(weights)
            else:
                kept.append(None)
        ctx.save_for_backward(q_THD, k_KTD, v_KTD, *kept)
        ctx.tiles, ctx.softcap = tiles, softcap
        return output.reshape(-1, *q_THD.shape[1:])[: len(q_THD)]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (d_output_THD,) = grads
        q_THD, k_KTD, v_KTD, *kept = ctx.saved_tensors
        K, T, D = k_KTD.shape
        q, d_output = _in_tiles(q_THD, K), _in_tiles(d_output_THD, K)
        dq = torch.empty_like(q)
        dk, dv = (x.new_zeros(T, K * D) for x in (k_KTD, v_KTD))
        for group, weights in zip(ctx.tiles, kept, strict=True):
            query, key, value = _queries(q, group), _keys(k_KTD, group), _keys(v_KTD, group)
            d_mixed = _queries(d_output, group)
            capped = None
            if weights is None:
                weights, capped = _weights(query, key, group.mask_ntS, ctx.softcap)
            _add_at(dv, group.keys_nS, torch.bmm(weights.transpose(1, 2), d_mixed), K)
            d_weights = torch.bmm(d_mixed, value.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if capped is not None:
                d_scores *= 1 - (capped / ctx.softcap) ** 2
            dq[group.numbers] = _from_products(torch.bmm(d_scores, key), dq.shape)
            _add_at(dk, group.keys_nS, torch.bmm(d_scores.transpose(1, 2), query), K)
        dk, dv = (x.view(T, K, D).transpose(0, 1) for x in (dk, dv))
        return dq.reshape(-1, *q_THD.shape[1:])[:T], dk, dv, None, None


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask_ntS: torch.Tensor, softcap: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention weights (K * n, G * t, S), and the capped scores before masking where there is a cap."""
    scores = torch.bmm(query, key.transpose(1, 2)).float()
    capped = None
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
        capped = scores.clone()
    n, t, S = mask_ntS.shape
    scores.view(-1, n, scores.shape[1] // t, t, S).add_(mask_ntS[:, None])
    return torch.softmax(scores, dim=-1).to(query.dtype), capped


def _in_tiles(x_THD: torch.Tensor, K: int) -> torch.Tensor:
    """(tiles, t, K, G, D), the last tile padded with zeros."""
    T, H, D = x_THD.shape
    padded = torch.nn.functional.pad(x_THD, (0, 0, 0, 0, 0, -T % TILE)) if T % TILE else x_THD
    return padded.reshape(-1, TILE, K, H // K, D)


def _queries(x: torch.Tensor, group: Tiles) -> torch.Tensor:
    """The group's tiles of (tiles, t, K, G, D) as (K * n, G * t, D): the heads that share keys lie in one product."""
    x = x[group.numbers].permute(2, 0, 3, 1, 4)
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


def _from_products(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(K * n, G * t, D) back to (n, t, K, G, D)."""
    _, t, K, G, D = shape
    return x.view(K, -1, G, t, D).permute(1, 3, 0, 2, 4)


def _keys(x_KTD: torch.Tensor, group: Tiles) -> torch.Tensor:
    """The keys (or values) of the group's tiles, (K * n, S, D)."""
    n, S = group.keys_nS.shape
    return x_KTD.index_select(1, group.keys_nS.flatten()).view(-1, S, x_KTD.shape[2])


def _add_at(total_TX: torch.Tensor, keys_nS: torch.Tensor, x: torch.Tensor, K: int) -> None:
    """Add (K * n, S, D) to the rows of `total_TX` that the keys were taken from."""
    n, S = keys_nS.shape
    total_TX.index_add_(0, keys_nS.flatten(), x.view(K, n * S, -1).transpose(0, 1).reshape(n * S, -1))


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    trie_plan: TriePlan,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query (1, H, T, D), key and value (1, K, T, D); returns (1, T, H, D).

    Of its options `scaling`, `sliding_window` and `softcap` count. Dropout of attention weights and attention sinks are
    not computed: where a model has them, the preflight sees the difference to its stock forward.
    """
    scaling, softcap, sliding_window = (options.get(name) for name in ("scaling", "softcap", "sliding_window"))
    scaling = scaling or query.shape[-1] ** -0.5
    if query.is_cuda:
        block_mask = trie_plan.block_mask(sliding_window)
        return _flex(query, key, value, block_mask=block_mask, scaling=scaling, softcap=softcap), None
    tiles = trie_plan.tiles(sliding_window)
    q_THD = (query[0] * scaling).transpose(0, 1)
    return _TileAttention.apply(q_THD, key[0].contiguous(), value[0].contiguous(), tiles, softcap or 0.0)[None], None


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    block_mask: Any,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """The same by FlexAttention, which skips the blocks that no token sees."""
    score_mod = None
    if softcap:

        def score_mod(score: torch.Tensor, b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
            return softcap * torch.tanh(score / softcap)

    output = _flex_kernel(query.is_cuda)(
        query, key, value, score_mod=score_mod, block_mask=block_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2)


@cache
def _flex_kernel(compiled: bool) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., torch.Tensor] = flex_attention
    return torch.compile(kernel, dynamic=True) if compiled else kernel


def _block_mask(trie: Trie, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Any, h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        on_path = (j <= i) & (i < trie.ends_T[j])
        return on_path & (trie.positions_T[i] - trie.positions_T[j] < window) if window else on_path

    T = len(trie.ids_T)
    return create_block_mask(sees, None, None, T, T, device=trie.ids_T.device)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *args, **keywords: None)  # the trie says who sees whom
