"""What the model says of both answers of each pair before it is trained: computed once, kept in the run directory.

Not here: what is made of it (objective). Called by train.run before step 1 and, without a cache, by train.prove.
The adapter's B is 0 then, so this is the base; where a training went on from an adapter, it would be that adapter.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tunesmith.errors import RunError
from tunesmith.model import Base
from tunesmith.nll import label_nll_N
from tunesmith.runs import Run
from tunesmith.train.loop import Interrupted
from tunesmith.train.objective import answer_logp_P2
from tunesmith.train.rows import Row, lay_out_rows, micro_batches

REFERENCE_FILE = "reference.json"
Parts = tuple[list[Row], list[Row]]  # training pairs, validation pairs


def with_cached_reference(
    run: Run, base: Base, *, parts: Parts, compute: Callable[[Sequence[Row]], list[Row]], say: Callable[[str], None]
) -> Parts:
    """The pairs with their reference: that of an earlier start of this run, if it is of the very same base and rows,
    else computed and written down. Raises RunError when a log-probability is not finite."""
    key = _key(base, parts)
    rows = [*parts[0], *parts[1]]
    path = run.directory / REFERENCE_FILE
    kept = run.read_json(REFERENCE_FILE) if path.is_file() else {}
    if kept.get("key") != key:
        say(f"Asking the base, once, how likely it finds both answers of {len(rows):,} pairs.")
        start = time.perf_counter()
        found = [row.reference for part in parts for row in compute(part)]
        run.write_json(REFERENCE_FILE, {"key": key, "base_sha256": base.sha256, "log_probabilities": found})
        run.event("reference", pairs=len(rows), seconds=time.perf_counter() - start)
        kept = {"log_probabilities": found}
    pairs = zip(rows, kept["log_probabilities"], strict=True)
    referred = [replace(row, reference=(chosen, rejected)) for row, (chosen, rejected) in pairs]
    return referred[: len(parts[0])], referred[len(parts[0]) :]


@torch.inference_mode()
def with_reference(
    model: Any,
    rows: Sequence[Row],
    *,
    micro_batch_tokens: int,
    share: bool,
    stop_asked: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """The pairs with the log-probabilities (nats) that `model` gives their answers now.

    Raises RunError where one is not finite, Interrupted when asked to stop; nothing of it is kept then.
    """
    model.eval()
    found: list[Row] = []
    for piece in micro_batches(rows, micro_batch_tokens):
        if stop_asked():
            raise Interrupted
        trie = lay_out_rows(piece, share=share)
        logp_P2 = answer_logp_P2(trie.owners_N, label_nll_N(model, trie).cpu(), num_pairs=len(piece))
        for row, (chosen, rejected) in zip(piece, logp_P2.tolist(), strict=True):
            if not (math.isfinite(chosen) and math.isfinite(rejected)):
                where = f"line {row.line}" if row.line else f"validation row {row.index + 1}"
                what = f"The base gives the answers of {where} the log-probabilities {chosen} and {rejected}."
                raise RunError(what, "Its weights are damaged, or the precision is too low: try float32.")
            found.append(replace(row, reference=(chosen, rejected)))
    return found


def _key(base: Base, parts: Parts) -> str:
    """sha256 over the base as it is held, and over the tokens of every pair in their order."""
    digest = hashlib.sha256(f"{base.sha256} {base.model.dtype} {base.quantized} {len(parts[0])}".encode())
    for rows in parts:
        for row in rows:
            for sequence in row.sequences:
                digest.update(len(sequence.ids).to_bytes(8, "little"))
                digest.update(np.array(sequence.ids, dtype=np.int64).tobytes())
                digest.update(np.array(sequence.trained, dtype=bool).tobytes())
    return digest.hexdigest()
