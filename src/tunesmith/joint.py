"""Linear layers of one input as one product: q, k and v, or gate and up, of a base that only answers.

Not here: which layers belong together, adapters (bank), the routes of a product (products). No gradient. The weights
become views of one tensor, so no memory is added. Axes: O outputs of all layers, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

from tunesmith.products import decoding_product


def can_join(linears: Sequence[Any]) -> bool:
    """Whether these are plain: float weights of one type on one device, no bias, and nothing else computed."""
    weights = [linear.weight for linear in linears]
    plain = all(type(linear) is torch.nn.Linear and linear.bias is None for linear in linears)
    alike = len({(weight.dtype, weight.device) for weight in weights}) == 1
    return plain and alike and weights[0].is_floating_point()


class Joint:
    """The first layer that is asked computes all; the others, asked of the very same input, take their part."""

    def __init__(self, linears: Sequence[Any], *, onednn: bool) -> None:
        ends = list(accumulate((len(linear.weight) for linear in linears), initial=0))
        self.parts = [slice(start, end) for start, end in pairwise(ends)]
        self.weight_OI = linears[0].weight.data
        if len(linears) > 1:
            self.weight_OI = torch.cat([linear.weight.data for linear in linears])
            for linear, part in zip(linears, self.parts, strict=True):
                linear.weight.data = self.weight_OI[part]
        self.onednn = onednn
        self.of: tuple[torch.Tensor, torch.Tensor] | None = None  # an input and all outputs of it

    def product(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """What the layer at this place makes of x; may be written to."""
        if len(self.parts) == 1:
            return decoding_product(x, self.weight_OI, onednn=self.onednn)
        if self.of is None or self.of[0] is not x:
            if place:  # out of order: for itself
                return decoding_product(x, self.weight_OI[self.parts[place]], onednn=self.onednn)
            self.of = x, decoding_product(x, self.weight_OI, onednn=self.onednn)
        y = self.of[1][..., self.parts[place]]
        if place == len(self.parts) - 1:
            self.of = None
        return y
