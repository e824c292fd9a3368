"""Feeding a batch of prompts to a model: what they share is computed once, and the cache has room for what is decoded.

Not here: which token comes next (generate), attention to what all prompts of a call share (prefix).
Called by generate. Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tunesmith.nll import hidden_at_labels
from tunesmith.prefix import Prefix, can_share
from tunesmith.render import Rendered
from tunesmith.trie import lay_out


class _RoomyLayer(DynamicLayer):
    """A layer's keys and values with room after them: a step writes its column and copies none of the others."""

    ROOM = 32  # columns

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [new.new_empty(*new.shape[:-2], 0, new.shape[-1]) for new in (key_states, value_states)]
        if end > self.rooms[0].shape[-2]:
            larger = [room.new_empty(*room.shape[:-2], end + self.ROOM, room.shape[-1]) for room in self.rooms]
            for room, old in zip(larger, self.rooms, strict=True):
                room[..., :length, :] = old[..., :length, :]
            self.rooms = larger
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., length:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.get_seq_length()
        self.rooms = [room[indices] for room in self.rooms]
        self.keys, self.values = (room[..., :length, :] for room in self.rooms)


class State:
    """A batch being decoded: its cache, which of the cache's columns are real (B, T), the logits of the last column."""

    def __init__(self, model: Any, num_rows: int, prefix: Prefix | None) -> None:
        self.model = model
        self.prefix = {"prefix": prefix} if prefix else {}
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        self.mask_BT = torch.zeros(num_rows, 0, dtype=torch.long)
        self.logits_BV = torch.empty(num_rows, 0)

    def advance(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, *, mask_BT: torch.Tensor | None = None) -> None:
        """Feed columns to the model; `mask_BT` says which of them are real (all, when None)."""
        new_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
        self.mask_BT = torch.cat([self.mask_BT, new_BT], dim=1)
        output = self.model(
            input_ids=ids_BT.to(self.model.device),
            position_ids=positions_BT.to(self.model.device),
            attention_mask=self.mask_BT.to(self.model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self.prefix,
        )
        self.logits_BV = output.logits[:, -1].cpu()

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only these rows of the batch."""
        self.cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
        self.mask_BT = self.mask_BT[list(rows)]


def prefill(model: Any, prompts: Sequence[Sequence[int]], *, prefix: Prefix | None) -> State:
    """Feed the prompts. What follows the prefix stands in the cache, padded on the left to one width."""
    if can_share(model) and min(map(len, prompts)) > 1:
        return _prefill_as_trie(model, prompts, prefix=prefix)
    width = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    positions_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        ids_BT[row, width - len(ids) :] = torch.tensor(ids)
        mask_BT[row, width - len(ids) :] = 1
        positions_BT[row, width - len(ids) :] = torch.arange(len(ids))
    state = State(model, len(prompts), prefix)
    state.advance(ids_BT, positions_BT, mask_BT=mask_BT)
    return state


def _prefill_as_trie(model: Any, prompts: Sequence[Sequence[int]], *, prefix: Prefix | None) -> State:
    """The same without padding, and nothing that prompts share is computed twice: each row takes its own path's keys
    and values. Their last tokens go through the model's own forward, which alone knows what it does to logits."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    start = prefix.num_tokens if prefix else 0
    width = max(map(len, prompts)) - 1 - start
    state = State(model, len(prompts), prefix)
    state.mask_BT = torch.zeros(len(prompts), width, dtype=torch.long)
    if width:
        all_but_last = [Rendered(tuple(ids), (*[False] * (len(ids) - 1), True)) for ids in prompts]
        trie = lay_out(all_but_last, [1.0] * len(prompts)).to(causal.device)
        cache = DynamicCache(config=causal.config)
        hidden_at_labels(causal, trie, cache=cache)
        tokens_BT = torch.zeros(len(prompts), width, dtype=torch.long, device=causal.device)
        for row, token in enumerate(trie.rows_N.tolist()):
            own = trie.path(token)[start:]
            tokens_BT[row, width - len(own) :] = own
            state.mask_BT[row, width - len(own) :] = 1
        for number, layer in enumerate(cache.layers):
            keys, values = (x[0][:, tokens_BT].transpose(0, 1) for x in (layer.keys, layer.values))
            state.cache.update(keys, values, number)
    last_BT = torch.tensor([[ids[-1]] for ids in prompts])
    state.advance(last_BT, torch.tensor([[len(ids) - 1] for ids in prompts]))
    return state
