"""Running out of memory: a second try with half as many tokens at once, then a stop with the numbers.

Not here: how a batch is cut by tokens (rows.micro_batches); the result does not depend on the cut. Called by the loop.
A process that the system kills for its memory has no second try here; its run goes on from the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from tunesmith.errors import RunError
from tunesmith.runs import Run
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Progress

Result = TypeVar("Result")
# torch has a class for accelerators that ran out; these are plain RuntimeErrors.
MESSAGES = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def within_memory(run: Run, progress: Progress, *, compute: Callable[..., Result], tokens: int, longest: int) -> Result:
    """`compute(micro_batch_tokens=n)`, with n the setting `tokens`, or half of it for the rest of the run once memory
    ran out. `longest` is the longest row, which cannot be cut.

    Raises RunError when half was too much too, with what was asked for, what is free and what to do.
    """
    random = checkpoint.random_state()
    while True:
        try:
            return compute(micro_batch_tokens=min(tokens, progress.micro_batch_tokens or tokens))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if progress.micro_batch_tokens:
                raise _too_many_tokens(error, progress, longest=longest) from error
            progress.micro_batch_tokens = tokens // 2
            run.event("out_of_memory", step=progress.step, next_tokens=tokens // 2, reason=_words(error))
        # Outside the handler: its traceback held the tensors of the failed try.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        checkpoint.set_random_state(random)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in MESSAGES)


def _too_many_tokens(error: BaseException, progress: Progress, *, longest: int) -> RunError:
    tokens = progress.micro_batch_tokens or 0
    what = (
        f"Out of memory after step {progress.step} with at most {max(tokens, longest)} tokens at once, half of what "
        f"was tried first: {_words(error)}."
    )
    if longest >= tokens:
        todo = f"One row alone has {longest} tokens: lower max_length in a new run"
    else:
        todo = f"Set micro_batch_tokens below {tokens} in a new run"
    return RunError(what, f"{todo}, or free memory and start the same command again.")


def shortage(error: BaseException) -> RunError:
    """The same for what has no tokens to halve: the optimiser's state, a check, the adapter itself."""
    todo = "Choose a smaller base or rank, or method qlora, or free memory and start the same command again."
    return RunError(f"Out of memory beside the micro-batches: {_words(error)}.", todo)


def _words(error: BaseException) -> str:
    """How much was asked for and how much is free, as far as it is known."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMG]iB)", str(error))
    words = f"{float(asked[1]) * UNITS[asked[2]] / 2**30:.2f} GiB were asked for" if asked else "memory ran out"
    free = free_bytes()
    return words if free is None else f"{words}, {free / 2**30:.2f} GiB are free"


def free_bytes() -> int | None:
    """What the accelerator, or else the machine, has left; None where the system does not tell."""
    if torch.cuda.is_initialized():
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
