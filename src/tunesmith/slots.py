"""A key-value cache with a place for each running row, and attention over it: rows come and go, nothing is padded.

Not here: which rows run (running), prompts of one call (prefill, prefix). Plugs into transformers' attention registry.
Axes: B rows, H heads, K key-value heads, G = H / K, T new tokens, C columns there is room for, S columns in use,
D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers.cache_utils import Cache

from tunesmith.attention import attention_named

NAME = "tunesmith_slots"
COLUMNS = 128  # at least so many are added when there is no room


@dataclass(slots=True)
class Feed:
    """What the layers of one forward share: the positions (B, T) of the new tokens, each of which sees the columns up
    to its own; `width` columns are in use."""

    positions_BT: torch.Tensor
    width: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, *, heads: int) -> torch.Tensor:
        """Added to the scores, (B, H, T, S)."""
        if window not in self.masks:
            columns_S = torch.arange(self.width, device=self.positions_BT.device)
            ahead_BTS = columns_S - self.positions_BT[..., None]
            hidden = ahead_BTS > 0
            if window:
                hidden |= ahead_BTS <= -window
            zeros = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self.masks[window] = zeros[:, None].expand(-1, heads, -1, -1).contiguous()
        return self.masks[window]


class Slots(Cache):
    """Keys and values (rows, K, C, D) of each layer. Row b of a forward is slot b; column c holds position c."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self.keys: list[torch.Tensor | None] = [None] * num_layers
        self.values: list[torch.Tensor | None] = [None] * num_layers
        self.rows = self.columns = 0
        self.feed: Feed | None = None

    def make_room(self, rows: int, columns: int) -> None:
        """At least so many rows and columns; what is held stays."""
        if rows <= self.rows and columns <= self.columns:
            return
        rows = max(rows, self.rows)
        if 0 < self.columns < columns:  # a row that grows will go on growing
            columns += max(COLUMNS, columns // 4)
        columns = max(columns, self.columns)
        for side in (self.keys, self.values):
            for number, old in enumerate(side):
                if old is not None:
                    side[number] = new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
                    new[: old.shape[0], :, : old.shape[2]] = old
        self.rows, self.columns = rows, columns

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer calls: write the new columns (B, K, T, D), and give all in use."""
        layer_idx = args[0] if args else keywords["layer_idx"]
        return self._written(self.keys, key_states, layer_idx), self._written(self.values, value_states, layer_idx)

    def _written(self, side: list[torch.Tensor | None], new_BKTD: torch.Tensor, layer: int) -> torch.Tensor:
        feed = self.feed
        assert feed is not None
        B, K, T, D = new_BKTD.shape
        held = side[layer]
        if held is None:
            held = side[layer] = new_BKTD.new_zeros(self.rows, K, self.columns, D)
        if B == 1:
            held[:1, :, feed.width - T : feed.width] = new_BKTD
        else:
            held[torch.arange(B, device=held.device), :, feed.positions_BT[:, 0]] = new_BKTD[:, :, 0]
        return held[:B, :, : feed.width]

    def take(self, other: Slots, *, row: int, columns: int) -> None:
        """The first columns of another cache's first row become those of this row."""
        for side, others in ((self.keys, other.keys), (self.values, other.values)):
            for layer, theirs in enumerate(others):
                assert theirs is not None
                own = side[layer]
                if own is None:
                    own = side[layer] = theirs.new_zeros(self.rows, theirs.shape[1], self.columns, theirs.shape[3])
                own[row, :, :columns] = theirs[0, :, :columns]

    def move(self, source: int, *, to: int, columns: int) -> None:
        """One row's columns take the place of another's."""
        for side in (self.keys, self.values):
            for held in side:
                assert held is not None
                held[to, :, :columns] = held[source, :, :columns]

    @property
    def num_bytes(self) -> int:
        first = self.keys[0]  # all are alike
        return 0 if first is None else 2 * len(self.keys) * first.numel() * first.element_size()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.feed.width if self.feed else 0

    def __len__(self) -> int:
        return len(self.keys)


@contextmanager
def feeding(model: Any, slots: Slots, *, feed: Feed) -> Iterator[dict[str, Any]]:
    """Switch the model's attention to these slots; yields the keywords to pass to its forward."""
    _register()
    slots.feed = feed
    try:
        with attention_named(NAME, model.config.get_text_config()):
            yield {
                "position_ids": feed.positions_BT,
                "past_key_values": slots,
                "use_cache": True,
                "logits_to_keep": 1,
                "slots_feed": feed,
            }
    finally:
        slots.feed = None


@torch.inference_mode()
def forward(model: Any, ids_BT: torch.Tensor, *, slots: Slots, starts: Sequence[int]) -> torch.Tensor:
    """Feed row b its tokens at the positions from `starts[b]` on; the logits (B, V) after each row's last. Rows of a
    batch of several have one token each."""
    device = model.device
    positions_BT = torch.tensor(starts)[:, None] + torch.arange(ids_BT.shape[1])
    width = max(starts) + ids_BT.shape[1]
    slots.make_room(len(starts), width)
    with feeding(model, slots, feed=Feed(positions_BT.to(device), width)) as keywords:
        logits: torch.Tensor = model(input_ids=ids_BT.to(device), **keywords).logits
    return logits[:, -1].cpu()


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    slots_feed: Feed,
    scaling: float,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query (B, H, T, D), key and value (B, K, S, D); returns (B, T, H, D). Of its options
    `sliding_window` and `softcap` count. The queries that share a key-value head lie in one product."""
    B, H, T, D = query.shape
    K, S = key.shape[1:3]
    softcap = options.get("softcap")
    mask_BTS = slots_feed.mask(options.get("sliding_window"), heads=H)
    query, key, value = query.reshape(B * K, -1, D), key.reshape(B * K, S, D), value.reshape(B * K, S, D)
    if softcap or query.dtype != torch.float32:
        scores = (query @ key.transpose(1, 2)).float().mul_(scaling)
        if softcap:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        scores += mask_BTS.view(scores.shape)
    else:
        scores = torch.baddbmm(mask_BTS.view(B * K, -1, S), query, key.transpose(1, 2), alpha=scaling)
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    return torch.bmm(weights, value).view(B, H, T, D).transpose(1, 2), None


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *args, **keywords: None)  # the feed says who sees whom
