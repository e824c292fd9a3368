"""Many LoRA adapters of one base at once: each token of a forward is computed with its own, in the same products.

Not here: the products (mixture), which rows there are (running), adapters that are more than A and B on linear layers
(adapter.add_adapter). Axes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tunesmith.adapter import ADAPTER_FILE, check_pin
from tunesmith.errors import ModelError
from tunesmith.facts import file_sha256, weights_sha256
from tunesmith.fused import SIBLINGS
from tunesmith.joint import Joint, can_join
from tunesmith.mixture import Adapter, Group, Many, One, Packed, Parts, Seats, Use
from tunesmith.model import Base
from tunesmith.products import fewest_rows_for_onednn

PREFIX = "base_model.model."  # of every name in PEFT's files
# Fields of adapter_config.json that do not change how a saved adapter is applied; of the others none may be set.
HARMLESS: Mapping[str, Sequence[object] | None] = {
    "auto_mapping": None, "base_model_name_or_path": None, "bias": ("none",), "exclude_modules": None,
    "inference_mode": None, "init_lora_weights": (True, False, None, "gaussian"), "layers_pattern": None,
    "layers_to_transform": None, "lora_alpha": None, "lora_dropout": None, "megatron_core": None,
    "peft_type": ("LORA",), "peft_version": None, "qalora_group_size": None, "r": None, "revision": None,
    "runtime_config": None, "target_modules": None, "task_type": None, "use_rslora": None,
}  # fmt: skip
SMALLEST_CHANGE = 1e-7  # of a layer's weights, in norm: less is lost in float32


class Bank:
    """Puts adapters on a base's linear layers for the time of a forward. Outside `using` the base is what it was."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.groups = {group.name: group for group in _groups(base.model)}
        self._use: Use | None = None
        self._use_at_output: Use | None = None
        output = base.model.get_output_embeddings()
        self._output = next((group.name for group in self.groups.values() if output in group.linears), None)
        self._seats = Seats(self.groups)
        self._one: One | None = None
        self._many: Many | None = None
        self._norms: dict[int, float] = {}
        largest = max((linear.weight for group in self.groups.values() for linear in group.linears), key=torch.numel)
        onednn_from = fewest_rows_for_onednn(largest)
        for group in self.groups.values():
            joint = Joint(group, onednn_from=onednn_from) if can_join(group.linears) else None
            for place, linear in enumerate(group.linears):
                linear.forward = partial(self._forward, linear.forward, group, joint, place)

    def _forward(
        self, stock: Callable[..., torch.Tensor], group: Group, joint: Joint | None, place: int, x: torch.Tensor
    ) -> torch.Tensor:
        use = self._use_at_output if group.name == self._output else self._use
        if joint is not None and not torch.is_grad_enabled():
            return joint.product(place, x, use=use)
        y = stock(x)
        if use is not None:
            use.add(group, x=x, y=y)
        return y

    @contextmanager
    def using(self, adapters: Sequence[Adapter | None], counts: Sequence[int] = ()) -> Iterator[None]:
        """While open, what the model is fed is computed with `adapters`; None leaves it to the base.

        With all the same, it is fed anything. Else the next `counts[i]` tokens, row by row, are computed
        with `adapters[i]`; cheapest is one token each, and those first; logits are asked of one token of each, in
        this order. For one thread at a time.
        """
        single = [1] * len(adapters)
        try:
            self._use = self._use_of(adapters, counts or single)
            if any(adapter is not None and self._output in adapter.groups for adapter in adapters):
                self._use_at_output = self._use_of(adapters, single)
            with torch.no_grad():
                yield
        finally:
            self._use = self._use_at_output = None

    def _use_of(self, adapters: Sequence[Adapter | None], counts: Sequence[int]) -> Use | None:
        if all(adapter is adapters[0] for adapter in adapters):
            return self._use_of_one(adapters[0])
        single = next((place for place, count in enumerate(counts) if count > 1), len(counts))
        if single == len(counts):
            return self._use_of_many(adapters)
        parts: list[tuple[Use | None, slice]] = []
        if single:
            parts.append((self._use_of(adapters[:single], counts[:single]), slice(0, single)))
        end = single
        for adapter, count in zip(adapters[single:], counts[single:], strict=True):
            start, end = end, end + count
            parts.append((One(adapter) if adapter else None, slice(start, end)))
        return Parts([(use, part) for use, part in parts if use is not None], num_tokens=end)

    def _use_of_one(self, adapter: Adapter | None) -> Use | None:
        if adapter is not None and (self._one is None or self._one.adapter is not adapter):
            self._one = One(adapter)
        return self._one if adapter is not None else None

    def _use_of_many(self, adapters: Sequence[Adapter | None]) -> Use:
        if self._many is None or self._many.adapters != tuple(adapters):
            self._many = None  # its places may be taken by now, also where the next one cannot be made
            self._many = Many(tuple(adapters), self._seats, device=self.base.model.device)
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
        self, group: Group, pairs: Sequence[tuple[torch.Tensor, torch.Tensor] | None], *, rank: int, scale: float
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


def _groups(model: Any) -> Iterator[Group]:
    """The model's linear layers, those of one input together if one product can make them."""
    for name, module in model.named_modules():
        linears = {child: layer for child, layer in module.named_children() if isinstance(layer, torch.nn.Linear)}
        for siblings in SIBLINGS:
            if all(child in linears for child in siblings) and can_join([linears[child] for child in siblings]):
                yield _group(f"{name}.{siblings[0]}", [linears.pop(child) for child in siblings])
        for child, layer in linears.items():
            yield _group(f"{name}.{child}", [layer])


def _group(name: str, linears: Sequence[Any]) -> Group:
    outputs = tuple(linear.out_features for linear in linears)
    return Group(name, tuple(linears), linears[0].in_features, outputs)
