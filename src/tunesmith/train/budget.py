"""How many tokens are laid out at once, and whether layers are computed twice: by the memory there is.

Not here: what happens when memory runs out all the same (memory). Called by train.run before the first step.
The activations that one token keeps are counted on the model itself, so that the forecast knows every architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.nll import label_nll_N
from tunesmith.train.memory import free_bytes
from tunesmith.train.rows import Row, lay_out_rows
from tunesmith.train.settings import Settings

SHARE_OF_FREE = {"cpu": 0.5, "cuda": 0.85}  # a processor's memory is others' too
MOST_TOKENS = {"cpu": 2048, "cuda": 32768}  # more pay no more: a processor's products are at their peak long before
STEP_BYTES = 1 << 28  # what a step takes besides: a chunk of logits and its gradient, scores, the allocator's slack
FEW_TOKENS = 256  # rows are counted until they have so many


@dataclass(frozen=True, slots=True)
class Budget:
    """`bytes_per_token` are the activations kept for the backward pass."""

    micro_batch_tokens: int
    recompute: bool
    bytes_per_token: int
    free_bytes: int | None

    def __str__(self) -> str:
        words = f"At most {self.micro_batch_tokens:,} tokens at once, {self.bytes_per_token / 1e6:.2f} MB each"
        free = f"; {self.free_bytes / 2**30:.1f} GiB of memory are free" if self.free_bytes is not None else ""
        return words + free + ("; layers are computed again in the backward pass." if self.recompute else ".")


def within_budget(model: Any, settings: Settings, *, rows: Sequence[Row]) -> tuple[Settings, Budget]:
    """The settings with `micro_batch_tokens` and `recompute` settled, and what they rest on.

    A number of tokens in the recipe is kept. Layers are computed again only when not even the longest row, or the
    recipe's number, fits otherwise: it costs a third of the time.
    """
    kind = model.device.type
    per_token = activation_bytes(model, rows)
    free = free_bytes()
    fits = MOST_TOKENS.get(kind, 2048)
    if free is not None:
        room = free * SHARE_OF_FREE.get(kind, 0.5) - STEP_BYTES
        fits = min(fits, max(0, int(room / per_token)))
    needed = settings.micro_batch_tokens or max(row.num_tokens for row in rows)
    recompute = needed > fits
    tokens = settings.micro_batch_tokens or max(needed, fits)
    settled = replace(settings, micro_batch_tokens=tokens, recompute=recompute)
    return settled, Budget(tokens, recompute, per_token, free)


def activation_bytes(model: Any, rows: Sequence[Row]) -> int:
    """Bytes kept for the backward pass per token laid out: the storages that autograd saves, each counted once."""
    few: list[Row] = []
    for row in rows:
        if sum(one.num_tokens for one in few) >= FEW_TOKENS:
            break
        few.append(row)
    trie = lay_out_rows(few, share=True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        nll_N = label_nll_N(model, trie)  # held, with its graph, until all is counted
    del nll_N
    return max(1, sum(kept.values()) // max(1, len(trie.ids_T)))
