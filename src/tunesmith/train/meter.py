"""What a step did and what it cost: tokens, seconds, memory, the share of the machine's peak, the loss of each example.

Not here: the loss a step goes down on (objective), where the lines are kept (runs). Used by the loop;
`peak_flops_per_s` is also said by train.run. MFU, model FLOPs utilisation, is defined in `useful_flops`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tunesmith.train.objective import Objective
from tunesmith.train.rows import Row
from tunesmith.trie import Trie

PROBE_S = 0.2
PROBE_SIZES = tuple(256 << power for power in range(6))  # to 8192: a large accelerator needs wide products


@dataclass(slots=True)
class Work:
    """What one batch computed: tokens after sharing, labels, how many were right, and each label's loss."""

    tokens: int = 0
    labels: int = 0
    _figures: dict[str, float] = field(default_factory=dict)
    _right: list[torch.Tensor] = field(default_factory=list)  # as they are: to read one would wait for the accelerator
    _pieces: list[tuple[Sequence[Row], torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def figures(self, objective: Objective) -> dict[str, float]:
        """What the objective says of the batch beside its loss."""
        return objective.of_tokens(sum(int(right) for right in self._right), self.labels) | self._figures

    def add(
        self,
        piece: Sequence[Row],
        *,
        trie: Trie,
        nll_N: torch.Tensor,
        right_N: torch.Tensor,
        figures: Mapping[str, float],
    ) -> None:
        self.tokens += len(trie.ids_T)
        self.labels += len(trie.labels_N)
        self._figures = {name: self._figures.get(name, 0.0) + value for name, value in figures.items()}
        self._right.append(right_N.sum())
        self._pieces.append((piece, trie.owners_N, nll_N.detach()))

    def by_example(self, objective: Objective) -> Iterator[dict[str, Any]]:
        """The loss of each row, as its line in example_losses.jsonl."""
        for piece, owners_N, nll_N in self._pieces:
            yield from objective.by_example(piece, owners_N=owners_N, nll_N=nll_N)


class Meter:
    """Reads the clocks around each step of one model."""

    def __init__(self, model: Any) -> None:
        self._device = model.device
        self._peak = _peak_of(model)
        self._per_token, self._per_label = useful_flops(model)

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, batch: Sequence[Row], work: Work) -> dict[str, Any]:
        """The figures of the step since `start`: `tokens` as they stand in the data, `tokens_trained` the labels among
        them, `tokens_computed` after sharing; memory in bytes."""
        _wait(self._device)
        seconds = time.perf_counter() - self._wall
        tokens = sum(row.num_tokens for row in batch)
        useful = self._per_token * work.tokens + self._per_label * work.labels
        return {
            "tokens": tokens,
            "tokens_trained": work.labels,
            "tokens_computed": work.tokens,
            "tokens_per_s": tokens / seconds,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - self._cpu,
            "mfu": useful / (seconds * self._peak),
            **memory(self._device),
        }


def useful_flops(model: Any) -> tuple[int, int]:
    """The useful floating-point operations of a training step, as (for each token computed, for each label).

    A linear layer of N weights takes 2 N forward, 2 N for the gradient of its input, and 2 N for that of its weights if
    they are trained: 4 N for a frozen base, 6 N for an adapter's own matrices and for full fine-tuning. What comes
    before the first trained weight has no gradient of its input. The output layer works at labels only. Not counted:
    attention scores, embeddings, norms, experts that are no torch.nn.Linear, and whatever an implementation adds
    (padding, recomputation). What it leaves out is counted: each token as if it went through every layer.
    Source: 2 N and 6 N, and the name MFU: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    head = set(model.get_output_embeddings().modules())
    flops = {"token": 0, "label": 0}
    trains = False
    for module in model.modules():
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if isinstance(module, torch.nn.Linear):  # its weight's own shape is another one when held in 4 bits
            size = module.in_features * module.out_features
            flops["label" if module in head else "token"] += (2 + 2 * trains + 2 * trained) * size
        trains = trains or trained
    return flops["token"], flops["label"]


@lru_cache
def peak_flops_per_s(dtype: torch.dtype, device: torch.device, *, threads: int) -> float:
    """The best rate of a square matrix product seen within PROBE_S, in this precision on so many of torch's threads.

    A measured peak, not a data sheet's: other processes lower it, and a product of a better shape may pass it.
    `threads` must be torch's own; it tells one measurement from another.
    """
    generator = torch.Generator(device).manual_seed(0)  # of its own: the training's random numbers stay as they are
    end = time.perf_counter() + PROBE_S
    best = 0.0
    for size in PROBE_SIZES:
        a = torch.empty(size, size, dtype=dtype, device=device).normal_(generator=generator)
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, a)
            _wait(device)
            seconds = time.perf_counter() - start
            best = max(best, 2 * size**3 / seconds)
        if end - time.perf_counter() < 8 * seconds:  # one product of the next size
            break
    return best


def peak_in_words(model: Any) -> str:
    where = f"threads: {torch.get_num_threads()}" if model.device.type == "cpu" else str(model.device)
    words = f"{_peak_of(model) / 1e9:,.0f} GFLOP/s ({str(model.dtype).removeprefix('torch.')}, {where})"
    return f"The peak that mfu is a share of, measured: {words}."


def _peak_of(model: Any) -> float:
    return peak_flops_per_s(model.dtype, model.device, threads=torch.get_num_threads())


def memory(device: torch.device) -> dict[str, int]:
    """Bytes in use now and at most so far: allocated on an accelerator, else resident (0 where no system tells)."""
    if device.type != "cpu":
        return {
            "memory_bytes": torch.accelerator.memory_allocated(device),
            "memory_peak_bytes": torch.accelerator.max_memory_allocated(device),
        }
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"memory_bytes": 0, "memory_peak_bytes": peak}
    values = dict(line.split(":", 1) for line in lines)
    now, peak = (int(values[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return {"memory_bytes": now, "memory_peak_bytes": max(now, peak)}  # the system notes its peak a little late


def _wait(device: torch.device) -> None:
    """Until the accelerator has done what it was told; a processor has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
