"""Rows as the loop sees them: rendered, ordered, cut into batches; and what became of those that do not train.

Not here: files and line numbers (the caller joins them by index), the trie (trie.lay_out).
The order is a function of seed and epoch alone, so a resumed run goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.chat import Example
from tunesmith.errors import RunError
from tunesmith.render import Rendered, Renderer, RenderError


@dataclass(frozen=True, slots=True)
class Row:
    """One example ready to train: its place in the examples given, its tokens, its weight."""

    index: int
    rendered: Rendered
    weight: float

    @property
    def num_tokens(self) -> int:
        return len(self.rendered.ids)


@dataclass(frozen=True, slots=True)
class Drop:
    """An example that does not train, and why."""

    index: int
    reason: str


def render_rows(examples: Sequence[Example], renderer: Renderer, *, max_length: int) -> tuple[list[Row], list[Drop]]:
    """Every example ends as a Row or a Drop. Nothing is cut: a row that does not fit is dropped whole.

    Raises RunError when an answer's last trained token is not a stop token: the model would never learn to stop.
    """
    rows: list[Row] = []
    drops: list[Drop] = []
    for index, example in enumerate(examples):
        try:
            rendered = renderer.render(example)
        except RenderError as error:
            drops.append(Drop(index, str(error)))
            continue
        if len(rendered.ids) > max_length:
            drops.append(Drop(index, f"{len(rendered.ids)} tokens do not fit the longest row of {max_length}"))
            continue
        if rendered.ids[-1] not in renderer.stop_ids:
            raise RunError(f"Row {index + 1} does not end in a stop token; the model would never learn to stop.")
        rows.append(Row(index, rendered, example.weight))
    return rows, drops


def batches(rows: Sequence[Row], *, seed: int, epoch: int, batch_size: int) -> list[list[Row]]:
    """The batches of one epoch: a permutation drawn from (seed, epoch), cut into pieces of `batch_size`."""
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    return [[rows[place] for place in order[start : start + batch_size]] for start in range(0, len(rows), batch_size)]


def micro_batches(batch: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Cut a batch, in order, so that each piece has at most `max_tokens` tokens (or is one row)."""
    piece: list[Row] = []
    size = 0
    for row in batch:
        if piece and size + row.num_tokens > max_tokens:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += row.num_tokens
    if piece:
        yield piece


def label_weight(rows: Sequence[Row]) -> float:
    """The sum of the label weights: what a batch's loss is divided by. The first token of a row is never a label."""
    return sum(row.weight * sum(row.rendered.trained[1:]) for row in rows)
