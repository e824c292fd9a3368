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
    `rows_nKS` are the keys that each may see, as rows of keys (T * K, D), padded with token 0; `mask_ntS` is added to
    the scores."""

    numbers: slice
    rows_nKS: torch.Tensor
    mask_ntS: torch.Tensor


@dataclass(slots=True)
class TriePlan:
    """What the layers of one forward share: the trie, and how attention over it is cut, by sliding window."""

    trie: Trie
    num_heads: int
    by_window: dict[Any, Any] = field(default_factory=dict)

    def tiles(self, window: int | None, num_kv_heads: int) -> list[Tiles]:
        if (window, num_kv_heads) not in self.by_window:
            tiles = cut_tiles(self.trie, window, num_heads=self.num_heads, num_kv_heads=num_kv_heads)
            self.by_window[window, num_kv_heads] = tiles
        return self.by_window[window, num_kv_heads]

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


def cut_tiles(trie: Trie, window: int | None, *, num_heads: int, num_kv_heads: int) -> list[Tiles]:
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
            keys_nS, mask_ntS = _pad(keys, slice(first, number), ends=ends, positions=positions, window=window)
            rows_nKS = keys_nS[:, None] * num_kv_heads + np.arange(num_kv_heads)[:, None]
            groups.append(Tiles(slice(first, number), torch.from_numpy(rows_nKS), torch.from_numpy(mask_ntS)))
            first = number
    return groups


def _pad(
    keys: list[np.ndarray], numbers: slice, *, ends: np.ndarray, positions: np.ndarray, window: int | None
) -> tuple[np.ndarray, np.ndarray]:
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
    return keys_nS, mask_ntS


class _TileAttention(torch.autograd.Function):
    """Softmax attention, tile by tile. The weights of wide tiles are computed again in the backward pass, so that
    memory holds little more than queries, keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        tiles: list[Tiles],
        scaling: float,
        softcap: float,
    ) -> torch.Tensor:
        q = _in_tiles(q_THD, k_TKD.shape[1], scaling)
        output = torch.empty_like(q)
        kept: list[torch.Tensor | None] = []
        for group in tiles:
            weights, _ = _weights(_of(q, group), _keys(k_TKD, group), group.mask_ntS, softcap)
            torch.bmm(weights, _keys(v_TKD, group), out=_of(output, group))
            if group.mask_ntS.shape[2] <= KEEP_KEYS and not softcap and any(ctx.needs_input_grad):
                kept.append(weights)
            else:
                kept.append(None)
        ctx.save_for_backward(q, k_TKD, v_TKD, *kept)
        ctx.tiles, ctx.scaling, ctx.softcap = tiles, scaling, softcap
        return _in_order(output, len(q_THD))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (d_output_THD,) = grads
        q, k_TKD, v_TKD, *kept = ctx.saved_tensors
        d_output = _in_tiles(d_output_THD, k_TKD.shape[1], 1.0)
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k_TKD), torch.zeros_like(v_TKD)
        for group, weights in zip(ctx.tiles, kept, strict=True):
            query, key, value = _of(q, group), _keys(k_TKD, group), _keys(v_TKD, group)
            d_mixed = _of(d_output, group)
            capped = None
            if weights is None:
                weights, capped = _weights(query, key, group.mask_ntS, ctx.softcap)
            _add_at(dv, group, torch.bmm(weights.transpose(1, 2), d_mixed))
            d_weights = torch.bmm(d_mixed, value.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if capped is not None:
                d_scores *= 1 - (capped / ctx.softcap) ** 2
            torch.bmm(d_scores, key, out=_of(dq, group))
            _add_at(dk, group, torch.bmm(d_scores.transpose(1, 2), query))
        return _in_order(dq.mul_(ctx.scaling), len(d_output_THD)), dk, dv, None, None, None


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask_ntS: torch.Tensor, softcap: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention weights (n * K, G * t, S), and the capped scores before masking where there is a cap."""
    scores = torch.bmm(query, key.transpose(1, 2)).float()
    capped = None
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
        capped = scores.clone()
    n, t, S = mask_ntS.shape
    scores.view(n, -1, t, S).add_(mask_ntS[:, None])
    return torch.softmax(scores, dim=-1).to(query.dtype), capped


def _in_tiles(x_THD: torch.Tensor, K: int, factor: float) -> torch.Tensor:
    """`factor` times x as (tiles, K, G, t, D): the heads that share keys lie together. The last is padded with 0."""
    T, H, D = x_THD.shape
    full, rest = divmod(T, TILE)
    tiles = x_THD.new_empty(full + bool(rest), K, H // K, TILE, D)
    x_TKGD = x_THD.unflatten(1, (K, -1))
    torch.mul(x_TKGD[: T - rest].unflatten(0, (full, TILE)).permute(0, 2, 3, 1, 4), factor, out=tiles[:full])
    if rest:
        torch.mul(x_TKGD[T - rest :].permute(1, 2, 0, 3), factor, out=tiles[full, :, :, :rest])
        tiles[full, :, :, rest:] = 0
    return tiles


def _in_order(tiles: torch.Tensor, T: int) -> torch.Tensor:
    """(tiles, K, G, t, D) back to (T, H, D)."""
    _, K, G, _, D = tiles.shape
    return tiles.permute(0, 3, 1, 2, 4).reshape(-1, K * G, D)[:T]


def _of(tiles: torch.Tensor, group: Tiles) -> torch.Tensor:
    """The group's part of (tiles, K, G, t, D), a view (n * K, G * t, D)."""
    return tiles[group.numbers].flatten(2, 3).flatten(0, 1)


def _keys(x_TKD: torch.Tensor, group: Tiles) -> torch.Tensor:
    """The keys (or values) of the group's tiles, (n * K, S, D)."""
    rows = x_TKD.flatten(0, 1).index_select(0, group.rows_nKS.flatten())
    return rows.view(-1, group.rows_nKS.shape[2], x_TKD.shape[2])


def _add_at(total_TKD: torch.Tensor, group: Tiles, x: torch.Tensor) -> None:
    """Add (n * K, S, D) to the rows of `total_TKD` that the keys were taken from."""
    total_TKD.flatten(0, 1).index_add_(0, group.rows_nKS.flatten(), x.flatten(0, 1))


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
    tiles = trie_plan.tiles(sliding_window, key.shape[1])
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    output_THD = _TileAttention.apply(q_THD, k_TKD.contiguous(), v_TKD.contiguous(), tiles, scaling, softcap or 0.0)
    return output_THD[None], None


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
