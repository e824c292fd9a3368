"""The token trie: lay sequences out so that a prefix several of them share is computed once, and score labels on it.

Not here: how sequences are grouped into batches, or the optimiser (train). Called for training, validation and proofs.
Axes: T tokens of the layout, N labels. The result equals the one-row-at-a-time computation; a property test shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.render import Rendered


@dataclass(frozen=True, slots=True)
class Trie:
    """A flat batch of unique tokens.

    `positions_T` follow each token's own path. `sees_TT[i, j]` says that token i attends to token j: j is i or one of
    its ancestors. Label n is the id `labels_N[n]`, predicted from token `rows_N[n]`, and counts `weights_N[n]` in the
    loss; it came from sequence `owners_N[n]`. `num_sequence_tokens` counts tokens before sharing.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    sees_TT: torch.Tensor
    rows_N: torch.Tensor
    labels_N: torch.Tensor
    weights_N: torch.Tensor
    owners_N: torch.Tensor
    num_sequence_tokens: int


def lay_out(sequences: Sequence[Rendered], weights: Sequence[float], *, share: bool = True) -> Trie:
    """Lay sequences out as one trie; with `share=False` side by side, isolated, without sharing (plain packing).

    A token's node is found by its parent node and its id, so every common prefix is found, at every depth.
    """
    nodes: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    parents: list[int] = []
    positions: list[int] = []
    labels: list[tuple[int, int, float, int]] = []
    for owner, (sequence, weight) in enumerate(zip(sequences, weights, strict=True)):
        parent = -1 if share else -1 - owner  # a root of its own keeps a sequence from every other
        for position, (token, trained) in enumerate(zip(sequence.ids, sequence.trained, strict=True)):
            if trained and position > 0:
                labels.append((parent, token, weight, owner))
            node = nodes.get((parent, token))
            if node is None:
                node = nodes[parent, token] = len(ids)
                ids.append(token)
                parents.append(parent)
                positions.append(position)
            parent = node
    rows, label_ids, label_weights, owners = zip(*labels, strict=True) if labels else ((), (), (), ())
    return Trie(
        ids_T=torch.tensor(ids, dtype=torch.long),
        positions_T=torch.tensor(positions, dtype=torch.long),
        sees_TT=torch.from_numpy(_ancestors(parents)),
        rows_N=torch.tensor(rows, dtype=torch.long),
        labels_N=torch.tensor(label_ids, dtype=torch.long),
        weights_N=torch.tensor(label_weights, dtype=torch.float32),
        owners_N=torch.tensor(owners, dtype=torch.long),
        num_sequence_tokens=sum(len(sequence.ids) for sequence in sequences),
    )


def label_nll_N(model: Any, trie: Trie) -> torch.Tensor:
    """Negative log-likelihood (nats, float32) of every label; logits are computed at the labels' rows only."""
    output = model(
        input_ids=trie.ids_T[None],
        position_ids=trie.positions_T[None],
        attention_mask=_attention_mask(model, trie),
        logits_to_keep=trie.rows_N,
        use_cache=False,
    )
    return torch.nn.functional.cross_entropy(output.logits[0].float(), trie.labels_N, reduction="none")


def _ancestors(parents: Sequence[int]) -> np.ndarray:
    """(T, T) bool, each row the row of its parent and itself. Parents stand before their children."""
    sees = np.zeros((len(parents), len(parents)), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node, : parent + 1] = sees[parent, : parent + 1]
        sees[node, node] = True
    return sees


def _attention_mask(model: Any, trie: Trie) -> torch.Tensor | dict[str, torch.Tensor]:
    """The additive (1, 1, T, T) mask transformers passes through as it is; one per kind of layer where kinds differ."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    full = _additive(trie.sees_TT, model.dtype)
    if not window or kinds == {"full_attention"}:
        return full
    distance_TT = trie.positions_T[:, None] - trie.positions_T[None, :]
    sliding = _additive(trie.sees_TT & (distance_TT < window), model.dtype)
    return {"full_attention": full, "sliding_attention": sliding} if kinds else sliding


def _additive(sees_TT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(sees_TT.shape, dtype=dtype)
    return mask.masked_fill_(~sees_TT, torch.finfo(dtype).min)[None, None]
