"""Linear layers of one input as one product: q, k and v, or gate and up, of a base that only answers.

Not here: which layers belong together (bank), what adapters add to it (mixture), the routes of a product (products).
No gradient. The weights become views of one tensor, so no memory is added. Axes: O outputs of all layers, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.mixture import Group, Use
from tunesmith.products import decoding_product


def can_join(linears: Sequence[Any]) -> bool:
    """Whether these are plain: float weights of one type on one device, all with a bias or none, and no more."""
    weights = [linear.weight for linear in linears]
    plain = all(type(linear) is torch.nn.Linear for linear in linears)
    alike = len({(weight.dtype, weight.device) for weight in weights}) == 1
    biased = {linear.bias is not None for linear in linears}
    return plain and alike and len(biased) == 1 and weights[0].is_floating_point()


class Joint:
    """The layer that is asked first computes all; the others, asked of the very same input, take their part."""

    def __init__(self, group: Group, *, onednn_from: float) -> None:
        self.group = group
        self.weight_OI = _joined([linear.weight for linear in group.linears])
        self.bias_O = None if group.linears[0].bias is None else _joined([linear.bias for linear in group.linears])
        self.onednn_from = onednn_from  # rows
        self._of: tuple[torch.Tensor, Use | None] | None = None  # whose parts are not all taken yet
        self._parts: dict[int, torch.Tensor] = {}

    def product(self, place: int, x: torch.Tensor, *, use: Use | None) -> torch.Tensor:
        """What the layer at this place, as it is used, makes of x; may be written to."""
        if len(self.group.outputs) == 1:
            return self._product(x, use)
        same = self._of is not None and self._of[0] is x and self._of[1] is use
        if not same or place not in self._parts:
            self._of = x, use
            self._parts = dict(enumerate(self._product(x, use).split_with_sizes(self.group.outputs, dim=-1)))
        part = self._parts.pop(place)
        if not self._parts:
            self._of = None
        return part

    def _product(self, x: torch.Tensor, use: Use | None) -> torch.Tensor:
        y = decoding_product(x, self.weight_OI, bias_O=self.bias_O, onednn_from=self.onednn_from)
        if use is not None:
            use.add(self.group, x=x, y=y)
        return y


def _joined(parameters: Sequence[Any]) -> torch.Tensor:
    """One tensor of all; each becomes a view of it."""
    if len(parameters) == 1:
        return torch.as_tensor(parameters[0].data)
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = part
    return joined
