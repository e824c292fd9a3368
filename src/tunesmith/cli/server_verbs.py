"""What the server's routes need beside the models: likeness of texts, intervals and the embedding model of other verbs,
and the threads that work beside the requests.

Not here: routes, which know these by the protocols of serve. Called by cli.server and the server's tests.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.jobs.dispatcher import Setup
    from tunesmith.jobs.validation import TrainableBase
    from tunesmith.retrieve.encoder import SentenceEncoder, Vectors
    from tunesmith.serve.eval_runs import EvalRunner
    from tunesmith.serve.metrics import Metrics
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.webhooks import Webhooks

SECRET_VARIABLE = "TUNESMITH_WEBHOOK_SECRET"

METEOR = "meteor needs WordNet, which this server does not have: choose rouge_l, gleu or cosine."


@dataclass(frozen=True, slots=True)
class Likeness:
    """OpenAI's metrics of text similarity; cosine by the embedding model where there is one."""

    encoder: BetweenSteps | None

    def refusal(self, metric: str) -> str | None:
        from tunesmith.evaluate.similarity import METRICS
        from tunesmith.retrieve.encoder import INSTALL

        if metric == "meteor":
            return METEOR
        if metric == "cosine" and self.encoder is None:
            return f"cosine needs the embedding model: {INSTALL}."
        return None if metric == "cosine" or metric in METRICS else f"There is no metric {metric!r}."

    def score(self, metric: str, text: str, *, reference: str) -> float:
        from tunesmith.evaluate.similarity import similarity

        if why := self.refusal(metric):
            raise InputError(why)
        if metric != "cosine" or self.encoder is None:
            return similarity(metric, text, reference=reference)
        encoder = self.encoder
        if max(encoder.count_tokens([text, reference])) > encoder.window:
            raise InputError(f"Texts above {encoder.window} tokens are not compared by meaning.")
        one, other = encoder.encode([text, reference])
        return min(1.0, max(0.0, float(one @ other)))


class BetweenSteps:
    """The embedding model on the thread that decodes, some texts at a time: a second thread that computes would slow
    every step (serve.engines.pytorch)."""

    def __init__(self, encoder: SentenceEncoder, served: ServedModels) -> None:
        self.encoder = encoder
        self.served = served
        self.name = encoder.name

    @property
    def window(self) -> int:
        return self.encoder.window

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.encoder.count_tokens(texts)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """As SentenceEncoder."""
        import numpy as np

        from tunesmith.retrieve.encoder import BATCH_ROWS
        from tunesmith.serve.engines.pytorch import TorchEngine

        engine = next((engine for engine in self.served.engines if isinstance(engine, TorchEngine)), None)
        if engine is None:
            return self.encoder.encode(texts)
        parts = [texts[start : start + BATCH_ROWS] for start in range(0, len(texts), BATCH_ROWS)]
        return np.concatenate([engine.between_steps(partial(self.encoder.encode, part)) for part in parts])


def shipped_encoder(served: ServedModels) -> BetweenSteps | None:
    """The embedding model that the rag extra brings; None where it is not installed."""
    from tunesmith.retrieve.encoder import SentenceEncoder, find_encoder

    encoder, _ = find_encoder("auto")
    return BetweenSteps(encoder, served) if isinstance(encoder, SentenceEncoder) else None


def pass_interval(passed: int, rows: int) -> tuple[float, float, float]:
    """The share that passed with the ends of its 95 % interval (Wilson's)."""
    from tunesmith.evaluate.stats import mean_interval

    found = mean_interval([1.0] * passed + [0.0] * (rows - passed))
    return found.mean, found.low, found.high


@dataclass(frozen=True, slots=True)
class ServerParts:
    """`state` is what `create_app` takes beside the models; inside `at_work` the threads run."""

    state: dict[str, Any]
    runner: EvalRunner
    webhooks: Webhooks | None

    def watch(self, metrics: Metrics) -> None:
        """What /metrics tells beside the requests."""
        from tunesmith.serve.records.eval_runs import open_runs

        models: ServedModels = self.runner.bench.models
        metrics.watch("eval_runs", "Eval runs that have not ended.", label="status", read=open_runs)
        metrics.watch("replies_running", "Replies being made.", label="base", read=partial(_loads, models, 0))
        metrics.watch("requests_waiting", "Requests that wait.", label="base", read=partial(_loads, models, 1))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        from tunesmith.serve.records import outbox

        if self.webhooks:
            self.webhooks.start()
        else:
            outbox.listen(())
        self.runner.start()  # after it is known who listens: what waited may end at once
        try:
            yield
        finally:
            self.runner.stop()
            if self.webhooks:
                self.webhooks.stop()


def _loads(models: ServedModels, place: int) -> Counter[str]:
    """Of each base in memory, by its name without a path: running replies (0) or waiting requests (1)."""
    loads = Counter[str]()
    for engine in models.engines:
        loads[Path(engine.base.name).name] += engine.load[place]
    return loads


def server_parts(
    served: ServedModels, *, python_graders: bool = False, webhooks: Webhooks | None = None
) -> ServerParts:
    from tunesmith.data.jsonl import check_jsonl
    from tunesmith.serve.checking import Checking
    from tunesmith.serve.eval_runs import EvalRunner
    from tunesmith.serve.graders.grade import Bench
    from tunesmith.serve.graders.python import PythonGraders
    from tunesmith.serve.records.completions import keep_completion

    encoder = shipped_encoder(served)
    bench = Bench(served, Likeness(encoder), PythonGraders() if python_graders else None)
    runner = EvalRunner(bench)
    state: dict[str, Any] = {"bench": bench, "encoder": encoder, "eval_runner": runner}
    state |= {"pass_interval": pass_interval, "keep": keep_completion}
    check = Checking([sys.executable, "-m", "tunesmith.data.jsonl"], check_jsonl)
    state |= {"check_upload": check, "trainable": trainable_bases(served)}
    return ServerParts(state, runner, webhooks)


def job_setup(served: ServedModels, parts: ServerParts, *, workers: int) -> Setup:
    """How the server works on jobs: a model gets a name once this very server answers with it as its trainer does."""
    from tunesmith.jobs.dispatcher import Setup
    from tunesmith.jobs.parity import check_parity, served_by

    parity = partial(check_parity, serve=served_by(served))
    return Setup(parts.state["trainable"], parity, workers=workers)


def trainable_bases(served: ServedModels) -> dict[str, TrainableBase]:
    """The bases among the models, in the precision they answer in: jobs are trained in the same."""
    from tunesmith.jobs.validation import TrainableBase

    found = {}
    for model in served:
        if model.adapter is None:
            path = Path(model.target)
            target = str(path.resolve()) if path.is_dir() else model.target  # the next start may be in another folder
            found[model.name] = TrainableBase(target, model.base.facts, model.engine.precision)
    return found


def describe_graders(parts: ServerParts) -> str:
    """What the administrator has allowed, on this machine's kernel."""
    from tunesmith.serve.graders.python import PythonGraders

    python = parts.state["bench"].python
    kept = python.apart() if isinstance(python, PythonGraders) else {}
    open_to = [name for name, apart in kept.items() if not apart]
    if not open_to:
        return "Python graders run users' code apart: no network, no files but Python's, no other processes."
    return f"Python graders run users' code, and this kernel does not keep it from: {', '.join(open_to)}."


def make_webhooks(urls: Sequence[str], *, inside: bool) -> Webhooks | None:
    """None without addresses. Raises InputError for a bad one, or without a secret to sign with."""
    if not urls:
        return None
    from tunesmith.serve.webhooks import Webhooks

    return Webhooks(urls, secret=os.environ.get(SECRET_VARIABLE, ""), inside=inside)
