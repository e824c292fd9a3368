"""Linear layers of one input as one product: q, k and v, or gate and up, of a base that only answers.

Not here: which layers belong together, adapters (bank), the routes of a product (products). No gradient. The weights
become views of one tensor, so no memory is added. Axes: O outputs of all layers, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def __init__(self, linears: Sequence[Any], *, onednn_from: float) -> None:
        self.sizes = [len(linear.weight) for linear in linears]
        self.weight_OI = linears[0].weight.data
        if len(linears) > 1:
            self.weight_OI = torch.cat([linear.weight.data for linear in linears])
            for linear, weight_OI in zip(linears, self.weight_OI.split(self.sizes), strict=True):
                linear.weight.data = weight_OI
        self.onednn_from = onednn_from  # rows
        self.of: tuple[torch.Tensor, Sequence[torch.Tensor]] | None = None  # an input, and each layer's output of it

    def product(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """What the layer at this place makes of x; may be written to."""
        if len(self.sizes) == 1:
            return decoding_product(x, self.weight_OI, onednn_from=self.onednn_from)
        if self.of is None or self.of[0] is not x:
            if place:  # out of order: for itself
                return decoding_product(x, self.weight_OI.split(self.sizes)[place], onednn_from=self.onednn_from)
            y = decoding_product(x, self.weight_OI, onednn_from=self.onednn_from)
            self.of = x, y.split_with_sizes(self.sizes, dim=-1)
        y = self.of[1][place]
        if place == len(self.sizes) - 1:
            self.of = None
        return y
