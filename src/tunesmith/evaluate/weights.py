"""Which weights a contender answers with: what ties a measurement to the adapter that is shipped on it.

Not here: the hashes (facts). Called by cli.evaluate and cli.blind, which write them, and by gate, which reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.contender import Contender, innermost
from tunesmith.facts import weights_sha256


def weights_of(contender: Contender) -> dict[str, str]:
    """sha256 of the base's weights and, where there is one, of the adapter's on it; nothing for what is not in memory
    here, such as a server."""
    model = innermost(contender)
    if known := getattr(model, "weights", None):
        return dict(known)
    if (base := getattr(model, "base", None)) is None:
        return {}
    adapter = getattr(model, "adapter", None)
    return {"base": base.sha256} | ({"adapter": weights_sha256(adapter)} if adapter else {})


def is_of(weights: Mapping[str, str] | None, sha256: str) -> bool:
    """Whether these are the weights of an adapter, or of a model trained as a whole, with that sha256."""
    weights = weights or {}
    return (weights.get("adapter") or weights.get("base")) == sha256
