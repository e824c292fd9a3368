"""Attention to a prefix that every row of a batch shares: its keys and values are held once, not once per row.

Not here: decoding (generate). Plugs into transformers' attention registry for the time of a `with` block; models whose
attention is not plain (sliding windows, soft caps) get None and keep the prefix in every row.
Axes: B rows, H heads, K key-value heads, T new tokens, S cached tokens of a row, P prefix tokens, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

NAME = "tunesmith_prefix"


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values (K, P, D) of each layer."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def num_tokens(self) -> int:
        return self.keys[0].shape[1]


@contextlib.contextmanager
def shared_prefix_of(model: Any, ids: Sequence[int]) -> Iterator[Prefix | None]:
    """Compute the prefix once and switch the model's attention to it; None, and nothing switched, when `ids` is empty.

    Only for a model that `can_share`. Pass the prefix to the model as the keyword `prefix`; the cache then holds only
    what follows it.
    """
    if not ids:
        yield None
        return
    cache = DynamicCache(config=model.config)
    ids_BT = torch.tensor([list(ids)], device=model.device)
    model(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
    prefix = Prefix(tuple(layer.keys[0] for layer in cache.layers), tuple(layer.values[0] for layer in cache.layers))
    _register()
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield prefix
    finally:
        model.config._attn_implementation = before


def can_share(model: Any) -> bool:
    """Whether the model's attention is the plain kind that `_attend` computes."""
    config = model.config.get_text_config()
    plain = not getattr(config, "sliding_window", None) and not getattr(config, "attn_logit_softcapping", None)
    remembers_all = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    return plain and remembers_all and model.config._attn_implementation in ("sdpa", NAME)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    prefix: Prefix,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """One softmax over the shared prefix and the row's own tokens. query (B, H, T, D); key, value (B, K, S, D).

    The rows' queries are folded into one block for the prefix, so its keys are read once for the whole batch.
    Returns (B, T, H, D), as transformers' attention functions do.
    """
    B, H, T, D = query.shape
    K = key.shape[1]
    prefix_key, prefix_value = prefix.keys[module.layer_idx], prefix.values[module.layer_idx]
    P = prefix_key.shape[1]
    own_query = (query * scaling).reshape(B, K, H // K * T, D)
    folded = own_query.transpose(0, 1).reshape(K, -1, D)
    to_prefix = (folded @ prefix_key.transpose(1, 2)).view(K, B, H // K * T, P).transpose(0, 1)
    to_own = own_query @ key.transpose(2, 3)
    if attention_mask is not None:
        shape = (B, K, H // K, T, key.shape[2])
        to_own = (to_own.view(shape) + attention_mask[:, :, None, :, : key.shape[2]]).flatten(2, 3)
    weights = torch.softmax(torch.cat([to_prefix, to_own], dim=-1).float(), dim=-1).to(value.dtype)
    from_prefix = weights[..., :P].transpose(0, 1).reshape(K, -1, P) @ prefix_value
    output = from_prefix.view(K, B, -1, D).transpose(0, 1) + weights[..., P:] @ value
    return output.reshape(B, H, T, D).transpose(1, 2), None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
