"""How the tokens of one forward are adapted, each with its own LoRA adapter: what is added to each layer's output.

Not here: reading adapters, which layers there are (bank). Source: gathered batched products as in Punica (2310.18547),
here one pair of products per input. Axes: T tokens, n adapters of a batch, m tokens of one of them, R rank, G linear
layers of one input, P pieces of their outputs, I inputs, O outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, Protocol

import torch

SLACK = 4  # of so many adapters in use one place may stand idle before they are moved together


@dataclass(frozen=True, slots=True)
class Packed:
    """An adapter on linear layers of one input: A of all of them (G * R, I), and each one's B (R, O), scaled; None
    where a layer is left as it is."""

    a: torch.Tensor
    bs: tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter in memory. It is never changed, so rows that began with it go on when it is taken away."""

    folder: Path
    sha256: str
    identity: str  # of the weights and of how they are applied
    rank: int
    groups: Mapping[str, Packed]

    @property
    def num_bytes(self) -> int:
        tensors = [tensor for packed in self.groups.values() for tensor in (packed.a, *packed.bs) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(eq=False)
class Group:
    """Linear layers that are given the same input and computed as one: their outputs lie side by side."""

    name: str
    linears: tuple[Any, ...]
    inputs: int
    outputs: tuple[int, ...]

    @property
    def width(self) -> int:
        """The widest piece of which every layer's outputs are a whole number."""
        return gcd(*self.outputs)

    @property
    def counts(self) -> list[int]:
        """How many pieces each layer's outputs are."""
        return [outputs // self.width for outputs in self.outputs]


class Use(Protocol):
    """How the tokens of one forward are adapted."""

    def add(self, group: Group, *, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y (..., O of all layers), in place and as it lies, what the adapters make of x (..., I)."""
        ...


class One:
    """All tokens use the same adapter: its products are added inside the base's output."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def add(self, group: Group, *, x: torch.Tensor, y: torch.Tensor) -> None:
        packed = self.adapter.groups.get(group.name)
        if packed is None:
            return
        h_TR = x.reshape(-1, group.inputs) @ packed.a.t()
        y_TO = y.view(-1, y.shape[-1])
        hs, ys = h_TR.split(self.adapter.rank, dim=1), y_TO.split_with_sizes(group.outputs, dim=1)
        for h, b, part in zip(hs, packed.bs, ys, strict=True):
            if b is not None:
                part.addmm_(h, b)


class Many:
    """Each token has an adapter of its own or none. Tokens of one adapter lie in one product."""

    def __init__(self, adapters: tuple[Adapter | None, ...], seats: Seats, *, device: torch.device) -> None:
        self.adapters = adapters
        uses = Counter(adapter for adapter in adapters if adapter is not None)
        places = seats.seat(list(uses))
        self.n, self.m = max(places.values()) + 1, max(uses.values())
        gather, rows, slots = [0] * (self.n * self.m), [], []
        filled: Counter[int] = Counter()
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                slot = places[adapter] * self.m + filled[places[adapter]]
                filled[places[adapter]] += 1
                gather[slot] = row
                rows.append(row)
                slots.append(slot)
        # An idle place is no row's, wherever it lies: then the rows are not in order.
        self.in_order = self.m == 1 and gather == rows == list(range(len(adapters)))
        self.gather, self.rows, self.slots = (torch.tensor(x, device=device) for x in (gather, rows, slots))
        self.parts = {
            name: (stack.a[: self.n].transpose(1, 2), stack.b[: self.n].flatten(0, 1), stack.layer_of)
            for name, stack in seats.stacks.items()
            if any(name in adapter.groups for adapter in uses)
        }

    def add(self, group: Group, *, x: torch.Tensor, y: torch.Tensor) -> None:
        if (part := self.parts.get(group.name)) is None:
            return
        a_nIR, b, layer_of = part  # b (n * P, R, O of a piece)
        pairs, rank, _ = b.shape
        if self.in_order:  # few calls: beside so small products each of them counts
            h = torch.bmm(x.view(self.n, 1, -1), a_nIR)
            if layer_of is not None:
                h = h.view(self.n, -1, rank).index_select(1, layer_of)
            y.view(pairs, 1, -1).baddbmm_(h.view(pairs, 1, rank), b)
            return
        x_TI = x.view(-1, group.inputs)
        _check_tokens(group, x_TI, len(self.adapters))
        x_nmI = x_TI.index_select(0, self.gather).view(self.n, self.m, -1)
        h = torch.bmm(x_nmI, a_nIR).view(self.n, self.m, -1, rank)
        if layer_of is not None:
            h = h.index_select(2, layer_of)
        h = h.transpose(1, 2).reshape(pairs, self.m, rank)
        change_nPmO = torch.bmm(h, b).view(self.n, -1, self.m, group.width)
        change_TO = change_nPmO.transpose(1, 2).reshape(-1, y.shape[-1]).index_select(0, self.slots)
        y.view(-1, y.shape[-1]).index_add_(0, self.rows, change_TO)


class Parts:
    """Parts of what the model is fed, each with a use of its own."""

    def __init__(self, parts: Sequence[tuple[Use, slice]], *, num_tokens: int) -> None:
        self.parts = parts
        self.num_tokens = num_tokens

    def add(self, group: Group, *, x: torch.Tensor, y: torch.Tensor) -> None:
        x_TI, y_TO = x.view(-1, group.inputs), y.view(-1, y.shape[-1])
        _check_tokens(group, x_TI, self.num_tokens)
        for use, part in self.parts:
            use.add(group, x=x_TI[part], y=y_TO[part])


@dataclass(frozen=True, slots=True)
class Stack:
    """Places for n adapters on the layers of one input."""

    a: torch.Tensor  # (n, G * R, I)
    b: torch.Tensor  # (n, P, R, O of a piece): alike pieces, so that one product makes the outputs of all layers
    layer_of: torch.Tensor | None  # each piece's layer (P,); None where each layer is one piece


class Seats:
    """Copies of the adapters in use, side by side in one tensor per layer, so that a product reads them in one go.

    A copy stays until its place is needed: an adapter that comes back is there.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self.groups = groups
        self.order: list[Adapter | None] = []
        self.rank = 0
        self.stacks: dict[str, Stack] = {}

    def seat(self, wanted: Sequence[Adapter]) -> dict[Adapter, int]:
        """The place of each adapter. They lie together but for a few idle places, which cost less than moving."""
        count = len(wanted)
        self._make_room(count, rank=max(adapter.rank for adapter in wanted))
        within = self.order[: count + count // SLACK]
        places = {adapter: place for place, adapter in enumerate(within) if adapter is not None and adapter in wanted}
        free = [place for place in range(len(within)) if place not in places.values()]
        for preferred, adapter in enumerate(wanted):
            if adapter not in places:
                place = preferred if preferred in free else free[0]
                free.remove(place)
                self._copy(adapter, place)
                places[adapter] = place
        return places

    def _make_room(self, count: int, *, rank: int) -> None:
        """Places for so many, of this rank; a much larger one that is not in use any more would cost as before."""
        if self.rank // 2 < rank <= self.rank and count <= len(self.order):
            return
        before, room = self.order, max(len(self.order), 1 << (count - 1).bit_length())
        self.rank, self.order, self.stacks = rank, [None] * room, {}
        for place, adapter in enumerate(before):
            if adapter is not None and adapter.rank <= rank:
                self._copy(adapter, place)

    def _copy(self, adapter: Adapter, place: int) -> None:
        self.order[place] = None  # until all of it is there: copying may fail
        for name, packed in adapter.groups.items():
            if name not in self.stacks:
                self.stacks[name] = self._empty(self.groups[name], like=packed.a)
        for name, stack in self.stacks.items():
            stack.a[place].zero_()
            stack.b[place].zero_()
            if name in adapter.groups:
                self._fill(stack, place, adapter=adapter, group=self.groups[name])
        self.order[place] = adapter

    def _fill(self, stack: Stack, place: int, *, adapter: Adapter, group: Group) -> None:
        packed, rank, layers = adapter.groups[group.name], adapter.rank, len(group.outputs)
        stack.a[place].view(layers, self.rank, -1)[:, :rank] = packed.a.view(layers, rank, -1)
        for b, pieces in zip(packed.bs, stack.b[place].split(group.counts), strict=True):
            if b is not None:
                pieces[:, :rank] = b.view(rank, len(pieces), -1).transpose(0, 1)

    def _empty(self, group: Group, *, like: torch.Tensor) -> Stack:
        room, layers, pieces = len(self.order), len(group.outputs), sum(group.counts)
        a = like.new_zeros(room, layers * self.rank, group.inputs)
        b = like.new_zeros(room, pieces, self.rank, group.width)
        layer_of = [layer for layer, count in enumerate(group.counts) for _ in range(count)]
        return Stack(a, b, torch.tensor(layer_of, device=like.device) if pieces > layers else None)


def _check_tokens(group: Group, x_TI: torch.Tensor, expected: int) -> None:
    """A layer that is given other tokens than the model was fed would compute them with each other's adapters."""
    if len(x_TI) != expected:
        raise RuntimeError(f"{group.name} was given {len(x_TI)} tokens of {expected}: whose they are is not known.")
