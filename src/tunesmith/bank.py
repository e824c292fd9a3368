"""Many LoRA adapters of one base at once: each row of a batch is computed with its own, in the same products.

Not here: which rows there are (running), adapters that are more than A and B on linear layers (adapter.add_adapter).
Axes: B rows, T tokens, n adapters of a batch, m rows of one of them, R rank, G linear layers of one input, I inputs,
O outputs. Source: gathered batched products as in Punica (2310.18547), here one pair of products per input.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tunesmith.adapter import ADAPTER_FILE, check_pin
from tunesmith.errors import ModelError
from tunesmith.facts import file_sha256, weights_sha256
from tunesmith.fused import SIBLINGS
from tunesmith.model import Base

PREFIX = "base_model.model."  # of every name in PEFT's files
# Fields of adapter_config.json that do not change how a saved adapter is applied; of the others none may be set.
HARMLESS: Mapping[str, Sequence[object] | None] = {
    "auto_mapping": None, "base_model_name_or_path": None, "bias": ("none",), "exclude_modules": None,
    "inference_mode": None, "init_lora_weights": (True, False, None, "gaussian"), "layers_pattern": None,
    "layers_to_transform": None, "lora_alpha": None, "lora_dropout": None, "megatron_core": None,
    "peft_type": ("LORA",), "peft_version": None, "qalora_group_size": None, "r": None, "revision": None,
    "runtime_config": None, "target_modules": None, "task_type": None, "use_rslora": None,
}  # fmt: skip
SLACK = 4  # of so many adapters in use one place may stand idle before they are moved together
SMALLEST_CHANGE = 1e-7  # of a layer's weights, in norm: less is lost in float32


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


class _Use(Protocol):
    """How the rows of one forward are adapted."""

    def add(self, group: _Group, place: int, *, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y, in place, what the adapters make of x on the layer at that place of the group."""
        ...


@dataclass(eq=False)
class _Group:
    """Linear layers that are given the same input."""

    name: str
    linears: tuple[Any, ...]
    inputs: int
    outputs: tuple[int, ...]


class Bank:
    """Puts adapters on a base's linear layers for the time of a forward. Outside `using` the base is what it was."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.groups = {group.name: group for group in _groups(base.model)}
        self._use: _Use | None = None
        self._seats = _Seats(self.groups)
        self._one: _One | None = None
        self._many: _Many | None = None
        self._norms: dict[int, float] = {}
        for group in self.groups.values():
            for place, linear in enumerate(group.linears):
                linear.forward = partial(self._forward, linear.forward, group, place)

    def _forward(self, stock: Callable[..., torch.Tensor], group: _Group, place: int, x: torch.Tensor) -> torch.Tensor:
        y = stock(x)
        if self._use is not None:
            self._use.add(group, place, x=x, y=y)
        return y

    @contextmanager
    def using(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """While open, row b of what the model is fed is computed with `adapters[b]`; None leaves it to the base.

        Where all are the same, rows may have any number of tokens, else one each. For one thread at a time.
        """
        self._use = self._use_of(adapters)
        try:
            yield
        finally:
            self._use = None

    def _use_of(self, adapters: Sequence[Adapter | None]) -> _Use | None:
        first = adapters[0]
        if all(adapter is first for adapter in adapters):
            if first is None:
                return None
            if self._one is None or self._one.adapter is not first:
                self._one = _One(first)
            return self._one
        if self._many is None or self._many.adapters != tuple(adapters):
            self._many = _Many(tuple(adapters), self._seats, device=self.base.model.device)
        return self._many

    def read(self, folder: Path) -> Adapter:
        """An adapter's file, packed for this base. Nothing of the bank changes, so any thread may call it.

        Raises ModelError for an adapter of another base, one with a tensor that has no place on it, and one that
        changes nothing.
        """
        check_pin(self.base, folder)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        try:
            tensors = load_file(folder / ADAPTER_FILE)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder / ADAPTER_FILE} cannot be read: {error}.", "Copy it again.") from error
        pairs = self._pairs(tensors, folder)
        rank = max(len(a) for a, _ in pairs.values())
        scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
        groups = {}
        for group in self.groups.values():
            found = [pairs.get(id(linear)) for linear in group.linears]
            if any(found):
                groups[group.name] = self._packed(group, found, rank=rank, scale=scale)
        sha256 = weights_sha256(folder)
        identity = f"{sha256} {file_sha256(folder / 'adapter_config.json')}"
        adapter = Adapter(folder, sha256, identity, rank, groups)
        if not self._changes_weights(adapter):
            raise ModelError(
                f"{folder} does not change what {self.base.name} answers.", "Train it again; it must not be served."
            )
        return adapter

    def _pairs(self, tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """A and B of each linear layer, by its id, once every tensor of the file has a place."""
        linears = {id(linear) for group in self.groups.values() for linear in group.linears}
        pairs, used = {}, 0
        for name, module in self.base.model.named_modules():
            module = getattr(module, "base_layer", module)  # where PEFT has put its own layer around it
            a, b = (tensors.get(f"{PREFIX}{name}.lora_{side}.weight") for side in "AB")
            if id(module) not in linears or a is None or b is None:
                continue
            fits = a.shape[1] == module.in_features and b.shape == (module.out_features, a.shape[0])
            if fits:
                pairs[id(module)] = (a, b)
                used += 2
        if used != len(tensors) or not used:
            raise ModelError(
                f"{folder} does not fit this base: of its {len(tensors)} tensors {len(tensors) - used} have no place "
                "on it.",
                "Name the base it was trained on, or copy it again.",
            )
        return pairs

    def _packed(
        self, group: _Group, pairs: Sequence[tuple[torch.Tensor, torch.Tensor] | None], *, rank: int, scale: float
    ) -> Packed:
        weights = self.base.model.get_input_embeddings().weight
        options: dict[str, Any] = {"device": weights.device, "dtype": weights.dtype}
        packed_a = torch.zeros(len(pairs) * rank, group.inputs, **options)
        bs: list[torch.Tensor | None] = [None] * len(pairs)
        for place, pair in enumerate(pairs):
            if pair is not None:
                a, b = pair
                packed_a[place * rank : place * rank + len(a)] = a
                bs[place] = packed_b = torch.zeros(rank, len(b), **options)
                packed_b[: len(a)] = b.t() if scale == 1 else b.t().float() * scale
        return Packed(packed_a, tuple(bs))

    def _changes_weights(self, adapter: Adapter) -> bool:
        """Whether B A is finite, and on some layer more than float32 loses. |B A|^2 is the trace of (A A')(B'B)."""
        shares = []
        for name, packed in adapter.groups.items():
            for place, (linear, b) in enumerate(zip(self.groups[name].linears, packed.bs, strict=True)):
                if b is None:
                    continue
                a = packed.a[place * adapter.rank : (place + 1) * adapter.rank].float()
                square = float(((a @ a.t()) * (b.float() @ b.float().t())).double().sum())
                shares.append(square**0.5 / self._norm(linear) if square >= 0 else float("nan"))
        return not any(share != share for share in shares) and max(shares) > SMALLEST_CHANGE

    def _norm(self, linear: Any) -> float:
        """Of the layer's weights; 1 where they are held in 4 bits."""
        if id(linear) not in self._norms:
            weight = linear.weight
            known = weight.is_floating_point() and float(torch.linalg.vector_norm(weight.float()))
            self._norms[id(linear)] = known or 1.0
        return self._norms[id(linear)]


def why_not(folder: Path) -> str | None:
    """Why the bank cannot hold an adapter that PEFT can; None where it can."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name, value in config.items():
        allowed: Sequence[object] | None = HARMLESS.get(name, (None, False, [], {}, ""))
        if allowed is not None and not any(value is item or value == item for item in allowed):
            return f"its {name} is {json.dumps(value)[:60]}"
    return None


class _One:
    """All rows use the same adapter: its products are added inside the base's output."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.of: tuple[_Group, torch.Tensor] | None = None  # what h was computed for

    def add(self, group: _Group, place: int, *, x: torch.Tensor, y: torch.Tensor) -> None:
        packed = self.adapter.groups.get(group.name)
        if packed is None or (b := packed.bs[place]) is None:
            return
        if not _same(self.of, group, x):
            h_TR = x.reshape(-1, group.inputs) @ packed.a.t()
            self.of, self.hs = (group, x), h_TR.split(self.adapter.rank, dim=1)
        y.view(-1, y.shape[-1]).addmm_(self.hs[place], b)


class _Many:
    """Each row has one token and an adapter of its own or none. Rows of one adapter lie in one product."""

    def __init__(self, adapters: tuple[Adapter | None, ...], seats: _Seats, *, device: torch.device) -> None:
        self.adapters = adapters
        self.seats = seats
        counts = Counter(adapter for adapter in adapters if adapter is not None)
        places = seats.seat(list(counts))
        self.n, m = max(places.values()) + 1, max(counts.values())
        gather, rows, slots = [0] * (self.n * m), [], []
        filled: Counter[int] = Counter()
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                slot = places[adapter] * m + filled[places[adapter]]
                filled[places[adapter]] += 1
                gather[slot] = row
                rows.append(row)
                slots.append(slot)
        self.in_order = m == 1 and gather == list(range(len(adapters)))
        self.all_rows = rows == list(range(len(adapters)))
        self.gather, self.rows, self.slots = (torch.tensor(x, device=device) for x in (gather, rows, slots))
        self.parts = {}
        for name in {name for adapter in counts for name in adapter.groups}:
            a, bs = seats.stacks[name]
            self.parts[name] = a[: self.n].transpose(1, 2), [b[: self.n] for b in bs]
        self.of: tuple[_Group, torch.Tensor] | None = None

    def add(self, group: _Group, place: int, *, x: torch.Tensor, y: torch.Tensor) -> None:
        part = self.parts.get(group.name)
        if part is None:
            return
        a_nIR, bs = part
        if not _same(self.of, group, x):
            x_nmI = x if self.in_order else x[:, 0].index_select(0, self.gather).view(self.n, -1, group.inputs)
            self.of, self.hs = (group, x), torch.bmm(x_nmI, a_nIR).split(self.seats.rank, dim=2)
        if self.in_order:
            y.baddbmm_(self.hs[place], bs[place])
            return
        change_RO = torch.bmm(self.hs[place], bs[place]).view(-1, y.shape[-1]).index_select(0, self.slots)
        if self.all_rows:
            y[:, 0].add_(change_RO)
        else:
            y[:, 0].index_add_(0, self.rows, change_RO)


class _Seats:
    """Copies of the adapters in use, side by side in one tensor per layer, so that a product reads them in one go.

    A copy stays until its place is needed: an adapter that comes back is there.
    """

    def __init__(self, groups: Mapping[str, _Group]) -> None:
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

    def _empty(self, group: _Group, *, like: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        room = len(self.order)
        a = like.new_zeros(room, len(group.outputs) * self.rank, group.inputs)
        return a, [like.new_zeros(room, self.rank, outputs) for outputs in group.outputs]


def _same(of: tuple[_Group, torch.Tensor] | None, group: _Group, x: torch.Tensor) -> bool:
    return of is not None and of[0] is group and of[1] is x


def _groups(model: Any) -> Iterator[_Group]:
    """The model's linear layers, those of one input together."""
    for name, module in model.named_modules():
        linears = {child: layer for child, layer in module.named_children() if isinstance(layer, torch.nn.Linear)}
        for siblings in SIBLINGS:
            if all(child in linears for child in siblings):
                yield _group(f"{name}.{siblings[0]}", [linears.pop(child) for child in siblings])
        for child, layer in linears.items():
            yield _group(f"{name}.{child}", [layer])


def _group(name: str, linears: Sequence[Any]) -> _Group:
    outputs = tuple(linear.out_features for linear in linears)
    return _Group(name, tuple(linears), linears[0].in_features, outputs)
