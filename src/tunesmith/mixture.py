"""How the tokens of one forward are adapted, each with its own LoRA adapter: what is added to each layer's output.

Not here: reading adapters, which layers there are (bank). Source: gathered batched products as in Punica (2310.18547),
here one pair of products per input. Axes: T tokens, n adapters of a batch, m tokens of one of them, R rank, G linear
layers of one input, I inputs, O outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Linear layers that are given the same input."""

    name: str
    linears: tuple[Any, ...]
    inputs: int
    outputs: tuple[int, ...]


class Use(Protocol):
    """How the tokens of one forward are adapted."""

    def add(self, group: Group, place: int, *, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y, in place, what the adapters make of x on the layer at that place of the group."""
        ...


class One:
    """All tokens use the same adapter: its products are added inside the base's output."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.of: tuple[Group, torch.Tensor] | None = None  # what h was computed for

    def add(self, group: Group, place: int, *, x: torch.Tensor, y: torch.Tensor) -> None:
        packed = self.adapter.groups.get(group.name)
        if packed is None or (b := packed.bs[place]) is None:
            return
        if not _same(self.of, group, x):
            h_TR = x.reshape(-1, group.inputs) @ packed.a.t()
            self.of, self.hs = (group, x), h_TR.split(self.adapter.rank, dim=1)
        y.view(-1, y.shape[-1]).addmm_(self.hs[place], b)


class Many:
    """Each token has an adapter of its own or none. Tokens of one adapter lie in one product."""

    def __init__(self, adapters: tuple[Adapter | None, ...], seats: Seats, *, device: torch.device) -> None:
        self.adapters = adapters
        self.seats = seats
        uses = Counter(adapter for adapter in adapters if adapter is not None)
        places = seats.seat(list(uses))
        self.n, m = max(places.values()) + 1, max(uses.values())
        gather, rows, slots = [0] * (self.n * m), [], []
        filled: Counter[int] = Counter()
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                slot = places[adapter] * m + filled[places[adapter]]
                filled[places[adapter]] += 1
                gather[slot] = row
                rows.append(row)
                slots.append(slot)
        self.all_rows = rows == list(range(len(adapters)))
        self.in_order = self.all_rows and m == 1 and gather == rows  # an idle place is no row's, wherever it lies
        self.gather, self.rows, self.slots = (torch.tensor(x, device=device) for x in (gather, rows, slots))
        self.parts = {}
        for name in {name for adapter in uses for name in adapter.groups}:
            a, bs = seats.stacks[name]
            self.parts[name] = a[: self.n].transpose(1, 2), [b[: self.n] for b in bs]
        self.of: tuple[Group, torch.Tensor] | None = None

    def add(self, group: Group, place: int, *, x: torch.Tensor, y: torch.Tensor) -> None:
        part = self.parts.get(group.name)
        if part is None:
            return
        a_nIR, bs = part
        if not _same(self.of, group, x):
            x_TI = x.view(-1, group.inputs)
            x_nmI = x_TI[:, None] if self.in_order else x_TI.index_select(0, self.gather).view(self.n, -1, group.inputs)
            self.of, self.hs = (group, x), torch.bmm(x_nmI, a_nIR).split(self.seats.rank, dim=2)
        y_TO = y.view(-1, y.shape[-1])
        # Not baddbmm_: into a part of a joint layer's output it multiplies adapter by adapter, at twice the cost.
        change_TO = torch.bmm(self.hs[place], bs[place]).view(-1, y_TO.shape[1])
        if not self.in_order:
            change_TO = change_TO.index_select(0, self.slots)
        if self.all_rows:
            y_TO.add_(change_TO)
        else:
            y_TO.index_add_(0, self.rows, change_TO)


class Parts:
    """Parts of what the model is fed, each with a use of its own."""

    def __init__(self, parts: Sequence[tuple[Use, slice]]) -> None:
        self.parts = parts
        self.of: tuple[Group, torch.Tensor] | None = None

    def add(self, group: Group, place: int, *, x: torch.Tensor, y: torch.Tensor) -> None:
        if not _same(self.of, group, x):  # the same pieces for each layer of the group, so that each is known again
            x_TI = x.view(-1, group.inputs)
            self.of, self.xs = (group, x), [x_TI[part] for _, part in self.parts]
        y_TO = y.view(-1, y.shape[-1])
        for (use, part), own in zip(self.parts, self.xs, strict=True):
            use.add(group, place, x=own, y=y_TO[part])


class Seats:
    """Copies of the adapters in use, side by side in one tensor per layer, so that a product reads them in one go.

    A copy stays until its place is needed: an adapter that comes back is there.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self.groups = groups
        self.order: list[Adapter | None] = []
        self.rank = 0
        self.stacks: dict[str, tuple[torch.Tensor, list[torch.Tensor]]] = {}

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
        self.order[place] = adapter
        for name, packed in adapter.groups.items():
            if name not in self.stacks:
                self.stacks[name] = self._empty(self.groups[name], like=packed.a)
        for name, (a, bs) in self.stacks.items():
            for stack in (a, *bs):
                stack[place].zero_()
            if name in adapter.groups:
                packed, rank = adapter.groups[name], adapter.rank
                a[place].view(len(bs), self.rank, -1)[:, :rank] = packed.a.view(len(bs), rank, -1)
                for stack, b in zip(bs, packed.bs, strict=True):
                    if b is not None:
                        stack[place, :rank] = b

    def _empty(self, group: Group, *, like: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        room = len(self.order)
        a = like.new_zeros(room, len(group.outputs) * self.rank, group.inputs)
        return a, [like.new_zeros(room, self.rank, outputs) for outputs in group.outputs]


def _same(of: tuple[Group, torch.Tensor] | None, group: Group, x: torch.Tensor) -> bool:
    return of is not None and of[0] is group and of[1] is x
