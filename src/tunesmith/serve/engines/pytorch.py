"""The engine `torch`: a base in this process, with the numerics of training, and all adapters in the same steps.

Not here: the batch (running), whose turn it is (serve.scheduler). It does all that a request may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.bank import why_not
from tunesmith.mixture import Adapter
from tunesmith.model import Base, load_base
from tunesmith.running import Running, Switched, Worn
from tunesmith.sampling import Token, text_tokens
from tunesmith.serve.engines.engine import Say
from tunesmith.serve.reply import Ask
from tunesmith.serve.scheduler import Job, Scheduler, wait_for

Result = TypeVar("Result")

CALL_S = 600.0  # a call to a base's thread may wait behind a prompt that is being fed


class TorchEngine:
    """A base in memory, and the thread that decodes with it."""

    name = "torch"

    def __init__(self, base: Base, *, say: Say = lambda text: None) -> None:
        self.base = base
        self.running = Running(base)
        self.scheduler = Scheduler(self.running)
        if self.running.alone:
            say(f"{base.name} answers one request at a time: {self.running.alone}.")

    @property
    def precision(self) -> str:
        return str(self.base.model.dtype).removeprefix("torch.")

    @property
    def is_alive(self) -> bool:
        return self.scheduler.is_alive

    def active(self, adapter: Worn) -> AbstractContextManager[Any]:
        """The model with just this adapter in effect; not while requests run."""
        return self.running.wearing(adapter)

    def put_on(self, folder: Path, *, name: str, say: Say) -> Adapter | Switched:
        """What the bank cannot hold is put on by PEFT, between two steps, and that is said."""
        reason = why_not(folder)
        if reason is None:
            return _computed_apart(lambda: self.running.put_on(folder))
        say(f"{folder} is switched to for each of its own requests, which do not share steps: {reason}.")
        return self.between_steps(lambda: self.running.put_on(folder))

    def take_off(self, adapter: Worn) -> None:
        if isinstance(adapter, Switched):
            self.scheduler.call(self.running.forget_unused)

    def check(self, ask: Ask) -> None:
        """Nothing is beyond it."""

    def submit(self, job: Job) -> None:
        self.scheduler.submit(job)

    @property
    def load(self) -> tuple[int, int]:
        return self.scheduler.load

    def tell(self, ids: Sequence[int], adapter: Worn, *, top: int) -> list[Token]:
        """One stock forward, between two steps."""

        def work() -> list[Token]:
            with self.active(adapter) as model:
                return text_tokens(model, ids, top=top)

        return self.between_steps(work)

    def between_steps(self, work: Callable[[], Result]) -> Result:
        """Do it on the thread that decodes. Raises ServeError (503) when it has no turn in CALL_S."""
        result: Result = wait_for(self.scheduler.call(work), CALL_S)
        return result

    def stop(self) -> None:
        self.scheduler.stop()


def open_torch(base: str, *, quantized: bool, precision: str, say: Say) -> TorchEngine:
    return _computed_apart(
        lambda: TorchEngine(load_base(base, precision=precision, quantize=quantized, say=say), say=say)
    )


def _computed_apart(work: Callable[[], Result]) -> Result:
    """Do it in a thread that ends with it.

    OpenMP keeps threads for each thread that ever computed. Where they are more than cores, none of them waits actively
    for its next share, and a step of one row takes half as long again (65 and 95 ms, two cores, libgomp): the thread
    that decodes must be the only one.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
