"""Before step 1: is the shared layout right on this model and these rows?

Not here: what a row must be (rows), the layout itself (trie). Called once by train.run; its answer is printed and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.errors import RunError
from tunesmith.train.rows import Row
from tunesmith.trie import label_nll_N, lay_out

NUM_ROWS = 4  # enough to share a prefix and to branch from it
TOLERANCES = {torch.float32: (1e-5, 1e-2)}  # relative, of the loss and of the gradient vector
LOW_PRECISION_TOLERANCES = (2e-2, 2e-1)


def check_layout(model: Any, rows: Sequence[Row]) -> tuple[bool, str]:
    """Compare loss and adapter gradients of a few rows laid out together with one row at a time.

    Returns (share, words): whether prefixes are shared, or only packed, and what was measured.
    Raises RunError when even packing differs: the model looks at other rows than its own.
    """
    few = list(rows[:NUM_ROWS])
    limits = TOLERANCES.get(model.dtype, LOW_PRECISION_TOLERANCES)
    plain = _measure(model, [[row] for row in few], share=False)
    shared = _distances(plain, _measure(model, [few], share=True))
    if _within(shared, limits):
        return True, f"sharing prefixes gives the plain result ({_words(shared)})"
    packed = _distances(plain, _measure(model, [few], share=False))
    if _within(packed, limits):
        return (
            False,
            f"sharing prefixes is off: on this model it changes the result ({_words(shared)}); packing does not",
        )
    raise RunError(
        f"Rows laid out side by side influence each other on this model ({_words(packed)}).",
        "Its attention cannot be isolated; please report the model's type.",
    )


def _measure(model: Any, groups: Sequence[Sequence[Row]], *, share: bool) -> torch.Tensor:
    """The summed loss and the gradients of all trainable parameters, as one vector. Dropout is off."""
    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.zeros(())
    for group in groups:
        trie = lay_out([row.rendered for row in group], [row.weight for row in group], share=share)
        loss = (label_nll_N(model, trie) * trie.weights_N).sum()
        loss.backward()
        total += loss.detach()
    gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([total[None], *gradients])


def _distances(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Relative differences of the loss and of the gradient vector (its norm over the norm of `a`)."""
    loss = (a[0] - b[0]).abs() / a[0].abs().clamp_min(1e-12)
    gradient = (a[1:] - b[1:]).norm() / a[1:].norm().clamp_min(1e-12)
    return float(loss), float(gradient)


def _within(distances: tuple[float, float], limits: tuple[float, float]) -> bool:
    return all(distance <= limit for distance, limit in zip(distances, limits, strict=True))


def _words(distances: tuple[float, float]) -> str:
    return f"relative difference of the loss {distances[0]:.1e}, of the gradients {distances[1]:.1e}"
