"""The token trie: lay sequences out so that a prefix several of them share is computed once.

Not here: attention over the layout (attention), losses on it (nll), how rows are grouped into batches (train).
Axes: T tokens of the layout, N labels. The result equals the one-row-at-a-time computation; a property test shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tunesmith.render import Rendered


@dataclass(frozen=True, slots=True)
class Trie:
    """A flat batch of unique tokens in depth-first order.

    `positions_T` follow each token's own path. The descendants of token j lie in `j + 1 .. ends_T[j] - 1`, so token i
    attends to token j exactly when `j <= i < ends_T[j]`. Label n is the id `labels_N[n]`, predicted from token
    `rows_N[n]`, and counts `weights_N[n]` in the loss; it came from sequence `owners_N[n]`. `num_sequence_tokens`
    counts tokens before sharing. Tokens that no label depends on are not laid out.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    ends_T: torch.Tensor
    rows_N: torch.Tensor
    labels_N: torch.Tensor
    weights_N: torch.Tensor
    owners_N: torch.Tensor
    num_sequence_tokens: int

    def path(self, token: int) -> torch.Tensor:
        """The tokens from a root to `token`, itself included: the one at depth d stands at place d."""
        return torch.nonzero(self.ends_T[: token + 1] > token)[:, 0]

    def to(self, device: torch.device) -> Trie:
        """The same layout on another device."""
        tensors = {name: x.to(device) for name in self.__slots__ if isinstance(x := getattr(self, name), torch.Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


def lay_out(sequences: Sequence[Rendered], weights: Sequence[float], *, share: bool = True) -> Trie:
    """Lay sequences out as one trie; with `share=False` side by side, isolated, without sharing (plain packing).

    Sorted sequences are a depth-first walk: each goes on where it leaves the one before it, so every common prefix is
    found, at every depth. The last tokens of a sequence, from which nothing is predicted, stay out.
    """
    ids = [np.array(sequence.ids, dtype=np.int64) for sequence in sequences]
    labels = [np.flatnonzero(np.array(sequence.trained[1:], dtype=bool)) + 1 for sequence in sequences]
    needed = [int(places[-1]) if len(places) else 0 for places in labels]
    by_ids = sorted(range(len(ids)), key=lambda owner: sequences[owner].ids[: needed[owner]])
    nodes = _Nodes()
    found: dict[int, np.ndarray] = {}
    for owner in by_ids if share else range(len(ids)):
        path = nodes.walk(ids[owner][: needed[owner]], share=share)
        found[owner] = path[labels[owner] - 1]
    owners = [owner for owner in range(len(ids)) for _ in labels[owner]]
    token_ids, positions, ends = nodes.columns()
    return Trie(
        ids_T=torch.from_numpy(token_ids),
        positions_T=torch.from_numpy(positions),
        ends_T=torch.from_numpy(ends),
        rows_N=torch.from_numpy(_joined([found[owner] for owner in range(len(ids))])),
        labels_N=torch.from_numpy(_joined([ids[owner][labels[owner]] for owner in range(len(ids))])),
        weights_N=torch.tensor([weights[owner] for owner in owners], dtype=torch.float32),
        owners_N=torch.tensor(owners, dtype=torch.long),
        num_sequence_tokens=sum(len(sequence) for sequence in ids),
    )


class _Nodes:
    """The tokens laid out so far, and the path (node of each depth) of the sequence that came last."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.ends = np.empty(0, dtype=np.int64)
        self.count = 0
        self.last_ids = np.empty(0, dtype=np.int64)
        self.path = np.empty(0, dtype=np.int64)

    def walk(self, ids: np.ndarray, *, share: bool) -> np.ndarray:
        """Add the tokens that the last path does not have; returns the node of each token of `ids`."""
        kept = _common_prefix(self.last_ids, ids) if share else 0
        new = np.arange(self.count, self.count + len(ids) - kept)
        self.ends = np.concatenate([self.ends, np.zeros(len(new), dtype=np.int64)])
        self.ends[self.path[kept:]] = self.count  # what is left behind is complete
        self.path = np.concatenate([self.path[:kept], new])
        self.ids.append(ids[kept:])
        self.positions.append(np.arange(kept, len(ids)))
        self.count += len(new)
        self.last_ids = ids
        return self.path

    def columns(self) -> tuple[np.ndarray, ...]:
        """ids, positions and ends of every token."""
        self.ends[self.path] = self.count
        return _joined(self.ids), _joined(self.positions), self.ends


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int64)
