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

from tunesmith.attention import attention_named

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
    with attention_named(NAME, model.config):
        yield prefix


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

    Each part has its own softmax; the sums of their exponentials say which share of the whole is whose. The rows'
    queries are folded into one block for the prefix, so its keys are read once for the whole batch.
    Returns (B, T, H, D), as transformers' attention functions do.
    """
    B, H, T, D = query.shape
    K = key.shape[1]
    G = H // K * T  # queries of a row to each key-value head
    query = query.reshape(B, K, G, D)
    folded = query.transpose(0, 1).reshape(1, K, B * G, D)
    keys, values = prefix.keys[module.layer_idx][None], prefix.values[module.layer_idx][None]
    on_cpu = query.device.type == "cpu"
    from_prefix, prefix_lse = (_fused if on_cpu else _plain)(folded, keys, values, scaling=scaling)
    mask = None
    if attention_mask is not None:
        shape = (B, K, H // K, T, key.shape[2])
        mask = attention_mask[:, :, None, :, : key.shape[2]].expand(shape).flatten(2, 3)
    from_own, own_lse = _plain(query, key, value, scaling=scaling, mask=mask)
    share = torch.sigmoid(prefix_lse.view(K, B, G).transpose(0, 1) - own_lse)[..., None]
    output = torch.lerp(from_own.float(), from_prefix.view(K, B, G, D).transpose(0, 1).float(), share)
    return output.to(value.dtype).reshape(B, H, T, D).transpose(1, 2), None


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs (..., G, D) and the logarithms of the sums of exponentials (..., G), in float32."""
    scores = ((query * scaling) @ key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1)
    sums = scores.amax(dim=-1) - weights.amax(dim=-1).log()  # the largest weight is exp(largest score) / sum
    return weights.to(value.dtype) @ value, sums


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without writing the scores, which is two to five times faster. The operator behind torch's
    `scaled_dot_product_attention` on a processor is called by its name, because that function keeps the sums to itself.
    """
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = attend(query, key, value, 0.0, False, scale=scaling)
    return output, lse


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
