"""Keys and values with a place for each running row, and attention over them: rows come and go, nothing is padded.

Not here: which rows run (running), prompts of one call (prefill, prefix). Plugs into transformers' attention registry.
Tokens of all rows are fed side by side, in one row of the model. Axes: T new tokens, B rows with one of them, n of one
span, L layers, H heads, K key-value heads, R slots, C columns there is room for, S columns in use, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from transformers.cache_utils import Cache

from tunesmith.attention import attention_named

NAME = "tunesmith_slots"
COLUMNS = 128  # at least so many are added when there is no room


class Slots:
    """Keys and values, each (L, R, K, C, D), so that all layers are copied at once. Column c of a slot holds position c
    of its row. They are made and written in inference mode only, for which other tensors are no match."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.sides: dict[str, torch.Tensor] = {}  # "keys" and "values", from the first of them on
        self.rows = self.columns = 0

    def has_room(self, rows: int, columns: int) -> bool:
        return rows <= self.rows and columns <= self.columns

    @torch.inference_mode()
    def make_room(self, rows: int, columns: int) -> None:
        """At least so many rows and columns; what is held stays."""
        if self.has_room(rows, columns):
            return
        rows = max(rows, self.rows)
        if 0 < self.columns < columns:  # a row that grows will go on growing
            columns += max(COLUMNS, columns // 4)
        self.rows, self.columns = rows, max(columns, self.columns)
        for name, old in list(self.sides.items()):
            self.sides[name] = new = self._empty(like=old[0])
            new[:, : old.shape[1], :, : old.shape[3]] = old

    def held(self, name: str, *, like: torch.Tensor) -> torch.Tensor:
        """The keys or the values of all layers; `like` (..., K, tokens, D) says of what shape."""
        if name not in self.sides:
            self.sides[name] = self._empty(like=like)
        return self.sides[name]

    def _empty(self, *, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self.num_layers, self.rows, like.shape[-3], self.columns, like.shape[-1])

    @torch.inference_mode()
    def take(self, other: Slots, *, row: int, columns: int) -> None:
        """The first columns of another's first row become those of this row."""
        for name, theirs in other.sides.items():
            self.held(name, like=theirs)[:, row, :, :columns] = theirs[:, 0, :, :columns]

    @torch.inference_mode()
    def move(self, source: int, *, to: int, columns: int) -> None:
        """One row's columns take the place of another's."""
        for held in self.sides.values():
            held[:, to, :, :columns] = held[:, source, :, :columns]

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        for held in self.sides.values():
            held[:, row].zero_()

    @property
    def num_bytes(self) -> int:
        return sum(held.numel() * held.element_size() for held in self.sides.values())


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a prompt that follow each other, at the positions from `start` on; its slots have one row."""

    slots: Slots
    start: int
    ids: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


class Feed(Cache):
    """The new tokens of one forward, and the cache that the layers write them to: one token for each of the slots 0,
    1, ... at the positions `starts`, then those of the spans. Each sees the columns of its row up to its own."""

    def __init__(self, slots: Slots, starts: Sequence[int], spans: Sequence[Span], *, device: torch.device) -> None:
        super().__init__(layers=[])
        self.slots, self.spans = slots, spans
        self.num_single, self.width = len(starts), max(starts, default=-1) + 1
        self.is_even = min(starts, default=-1) + 1 == self.width  # the single tokens have the same position
        positions = [*starts, *(position for span in spans for position in range(span.start, span.end))]
        self.rows_B = torch.arange(len(starts), device=device)
        self.positions_T = torch.tensor(positions, device=device)
        self._masks: dict[int | None, list[torch.Tensor | None]] = {}
        slots.make_room(len(starts), self.width)
        for span in spans:
            span.slots.make_room(1, span.end)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **keywords: Any
    ) -> tuple[Any, Any]:
        """What a layer calls with the new tokens' columns (1, K, T, D). Gives `_attend` a list of what they see:
        (B, K, S, D) for the single tokens, if there are any, and (1, K, S, D) for each span."""
        layer = args[0] if args else keywords["layer_idx"]
        keys = self._written(key_states, layer, side="keys")
        return keys, self._written(value_states, layer, side="values")

    def _written(self, new: torch.Tensor, layer: int, *, side: str) -> list[torch.Tensor]:
        seen, end = [], self.num_single
        if end:
            held = self.slots.held(side, like=new)[layer]
            if self.is_even:  # no index: a fifth of a millisecond less a layer
                held[:end, :, self.width - 1] = new[0, :, :end].transpose(0, 1)
            else:
                held[self.rows_B, :, self.positions_T[:end]] = new[0, :, :end].transpose(0, 1)
            seen.append(held[:end, :, : self.width])
        for span in self.spans:
            start, end = end, end + len(span.ids)
            held = span.slots.held(side, like=new)[layer]
            held[:, :, span.start : span.end] = new[:, :, start:end]
            seen.append(held[:, :, : span.end])
        return seen

    def masks(self, window: int | None, *, heads: int) -> list[torch.Tensor | None]:
        """Added to the scores: (B, H, 1, S) of the single tokens, if there are any, then (1, H, n, S) of each span.
        None where all columns are seen."""
        if window not in self._masks:
            masks: list[torch.Tensor | None] = []
            end = self.num_single
            if end and self.is_even and not (window and window < self.width):
                masks.append(None)
            elif end:
                masks.append(_mask(self.positions_T[:end, None], self.width, window, heads=heads))
            for span in self.spans:
                start, end = end, end + len(span.ids)
                masks.append(_mask(self.positions_T[None, start:end], span.end, window, heads=heads))
            self._masks[window] = masks
        return self._masks[window]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max([self.width, *(span.end for span in self.spans)])

    def __len__(self) -> int:
        return self.slots.num_layers


@torch.inference_mode()
def forward(
    model: Any, ids: Sequence[int], *, slots: Slots, starts: Sequence[int], spans: Sequence[Span] = ()
) -> torch.Tensor:
    """Feed slot b the token `ids[b]` at the position `starts[b]`, and each span its tokens; the logits (B + spans, V)
    after each token and after the last of each span."""
    device = model.device
    feed = Feed(slots, starts, spans, device=device)
    ids_T = torch.tensor([*ids, *(token for span in spans for token in span.ids)], device=device)
    ends = accumulate((len(span.ids) for span in spans), initial=len(ids))
    lasts = torch.tensor([*range(len(ids)), *(end - 1 for end in list(ends)[1:])], device=device)
    _register()
    with attention_named(NAME, model.config.get_text_config()):
        logits_1TV: torch.Tensor = model(
            input_ids=ids_T[None],
            position_ids=feed.positions_T[None],
            past_key_values=feed,
            use_cache=True,
            logits_to_keep=lasts,
            slots_feed=feed,
        ).logits
    return logits_1TV[0].cpu()


def _attend(
    module: Any,
    query: torch.Tensor,
    key: list[torch.Tensor],
    value: list[torch.Tensor],
    attention_mask: torch.Tensor | None,
    *,
    slots_feed: Feed,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query (1, H, T, D), key and value as `Feed.update` gives them; returns (1, T, H, D). Of
    its options `scaling`, `sliding_window` and `softcap` count."""
    single = slots_feed.num_single
    queries = [query[0, :, :single].transpose(0, 1)[:, :, None]] if single else []
    if slots_feed.spans:
        queries += query[:, :, single:].split([len(span.ids) for span in slots_feed.spans], dim=2)
    masks = slots_feed.masks(options.get("sliding_window"), heads=query.shape[1])
    parts = [
        _attended(*part, options=options).transpose(1, 2).flatten(0, 1)
        for part in zip(queries, key, value, masks, strict=True)
    ]
    return (torch.cat(parts) if len(parts) > 1 else parts[0])[None], None


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *, options: dict[str, Any]
) -> torch.Tensor:
    """Query (B, H, n, D) over key and value (B, K, S, D): (B, H, n, D). Where all is seen, by torch's own
    attention; else the queries that share a key-value head lie in one product."""
    B, H, n, D = query.shape
    K, S = key.shape[1:3]
    scaling, softcap = options["scaling"], options.get("softcap")
    if mask is None and not softcap:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=K < H)
    query, key, value = query.reshape(B * K, -1, D), key.reshape(B * K, S, D), value.reshape(B * K, S, D)
    if mask is None or softcap or query.dtype != torch.float32:
        scores = (query @ key.transpose(1, 2)).float().mul_(scaling)
        if softcap:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        if mask is not None:
            scores += mask.view(scores.shape)
    else:
        scores = torch.baddbmm(mask.view(B * K, -1, S), query, key.transpose(1, 2), alpha=scaling)
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    return torch.bmm(weights, value).view(B, H, n, D)


def _mask(positions_BT: torch.Tensor, width: int, window: int | None, *, heads: int) -> torch.Tensor:
    columns_S = torch.arange(width, device=positions_BT.device)
    ahead_BTS = columns_S - positions_BT[..., None]
    hidden = ahead_BTS > 0
    if window:
        hidden |= ahead_BTS <= -window
    zeros = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
    return zeros[:, None].expand(-1, heads, -1, -1).contiguous()


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *args, **keywords: None)  # the feed says who sees whom
