"""How a worker takes turns and what it reports: a line of JSON when it is ready, then one for every turn.

Not here: any trainer of ours. It runs in the peers' environments too, so it needs the standard library only.
Called by the workers beside it. `benchmarks/train_speed.py` holds the other end of the pipe.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def read_job() -> dict[str, Any]:
    """The job this worker was started with: a JSON file, named on the command line."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job


class Meter:
    """Runs a training in turns: it waits, idle, in `wait` or `step` until standard input says how many steps to go.

    A step lasts from where the one before ended to where it ends itself, so loading a batch and logging are in it.
    """

    def __init__(self) -> None:
        self._reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes to standard error
        self._steps: list[dict[str, Any]] = []
        self._left = 0

    def ready(self, **facts: Any) -> None:
        """Say that the training could start, and with what settings."""
        self._say(facts)

    def wait(self) -> None:
        """Wait for a turn; ends the process when there is none left."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left = int(line)
        self._start = time.perf_counter(), time.process_time()

    def step(self, *, loss: float, tokens: int, labels: int, computed: int) -> None:
        """A step has ended. Tokens are counted without padding and before sharing; `computed` is what was computed."""
        now = time.perf_counter(), time.process_time()
        self._steps.append(
            {
                "wall_s": now[0] - self._start[0],
                "cpu_s": now[1] - self._start[1],
                "loss": loss,
                "tokens": tokens,
                "labels": labels,
                "computed": computed,
            }
        )
        self._start = now
        self._left -= 1
        if self._left == 0:
            self._say({"steps": self._steps, "peak_gib": peak_gib()})
            self._steps = []
            self.wait()

    def _say(self, report: dict[str, Any]) -> None:
        print(json.dumps(report), file=self._reports, flush=True)


def peak_gib() -> float:
    """The most memory this process ever held, on the accelerator where it has one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of the packages that are there."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def trainer_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What a peer's SFTConfig is told, so that it trains as we do; everything else stays at the peer's default.

    `max_steps` has one more than is measured: a step ends where the next one begins.
    """
    return {
        "output_dir": job["scratch"],
        "per_device_train_batch_size": job["rows_per_step"],
        "max_steps": len(job["rates"]),
        "learning_rate": job["rates"][0],
        "lr_scheduler_type": "constant",  # `follow` sets the rate of every step
        "weight_decay": 0.0,
        "seed": job["seed"],
        "train_sampling_strategy": "sequential",  # the rows stand in the order we train them in
        "use_cpu": job["device"] == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **job["options"],
    }


def follow(trainer: Any, meter: Meter, *, rates: list[float]) -> dict[str, Any]:
    """Have a transformers Trainer take turns; returns what its settings came to."""
    from transformers import TrainerCallback

    collate = trainer.data_collator
    counts: deque[dict[str, int]] = deque()

    def counting(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        labels = sum(label != -100 for row in rows for label in row["labels"][1:])  # the first token is never predicted
        tokens = sum(len(row["input_ids"]) for row in rows)
        counts.append({"tokens": tokens, "labels": labels, "computed": batch["input_ids"].numel()})
        return batch

    class Turns(TrainerCallback):
        loss = float("nan")

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                meter.wait()
            else:
                meter.step(loss=self.loss, **counts.popleft())
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = rates[state.global_step]

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.loss = kwargs["logs"].get("loss", self.loss)

    trainer.data_collator = counting
    trainer.add_callback(Turns())
    args = trainer.args
    frozen = next(parameter for parameter in trainer.model.parameters() if not parameter.requires_grad)
    return {
        "weights": str(frozen.dtype).removeprefix("torch."),
        "autocast": "bfloat16" if args.bf16 else "float16" if args.fp16 else None,
        "checkpointing": args.gradient_checkpointing,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "attention": trainer.model.config._attn_implementation,
    }
