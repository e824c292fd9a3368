"""Before a job succeeds: does the served path answer the way the trainer's own model does?

Not here: what a fresh process proves of the saved adapter (train.prove). Compared on the run's validation rows, all
greedily: the tokens of each prompt with those it was trained as, the tokens of each reply and their log-probabilities,
and how many replies end by themselves.
torch comes with the spine, when a check is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from tunesmith.chat import Example, Message, parse_row
from tunesmith.contender import Reply
from tunesmith.facts import weights_sha256
from tunesmith.render import RenderError
from tunesmith.runs import Run
from tunesmith.serve.records.jobs import Job

if TYPE_CHECKING:
    from tunesmith.generate import Generated, LocalContender
    from tunesmith.serve.models import ServedModels
    from tunesmith.serve.reply import Choice

Answer = Callable[[Sequence[Message]], "Choice"]
Serve = Callable[[Run], AbstractContextManager[Answer]]
Parity = Callable[[Job, Run], str | None]  # why the served path does not answer like the trainer's model, or None

ROWS = 4
QUESTIONS = (("What is 12 times 7?", "84"), ("Name three colours.", "Red, green and blue."))
MAX_NEW_TOKENS = 24
TOLERANCE_NATS = {"float32": 1e-3}  # of a log-probability; between two tokens that are nearer, float error decides
TOLERANCE_LOW_PRECISION_NATS = 0.1
TRIAL_OWNER = "\0trial"  # nobody's name


def served_by(models: ServedModels) -> Serve:
    """How the server answers with a run's model, which nobody else can ask yet."""
    from tunesmith.sampling import Sampling
    from tunesmith.serve.records.models import Made
    from tunesmith.serve.reply import Ask, Choice

    @contextmanager
    def serve(run: Run) -> Iterator[Answer]:
        folder, base = run.weights_dir, run.read_json("claim.json")["base"]
        name = f"candidate-{run.id}"
        made = Made(name, TRIAL_OWNER, int(time.time()), base, folder, weights_sha256(folder))

        def answer(messages: Sequence[Message]) -> Choice:
            ask = Ask(tuple(messages), max_new_tokens=MAX_NEW_TOKENS, sampling=Sampling(top_logprobs=0))
            *_, last = models.stream_items(name, ask, owner=TRIAL_OWNER)
            assert isinstance(last, Choice)
            return last

        with models.on_trial(made):
            yield answer

    return serve


def check_parity(job: Job, run: Run, *, serve: Serve) -> str | None:
    """The first difference found, in words for the job's owner, or None. `serve` makes the served path of a run."""
    with trained_model(run) as trainer, serve(run) as answer:
        examples = _rows(run, trainer)
        stopped = [0, 0]
        for number, example in enumerate(examples, start=1):
            expected, served = _reply(trainer, example.prompt), answer(example.prompt)
            stopped[0] += expected.finish_reason == "stop"
            stopped[1] += served.reply.stopped
            reason = _prompt_difference(trainer, example, served.reply)
            if reason := reason or _reply_difference(trainer, example, expected, served):
                return f"validation row {number}: {reason}"
    if abs(stopped[0] - stopped[1]) > 1:
        return f"{stopped[1]} of {len(examples)} served replies end by themselves, {stopped[0]} of the trainer's"
    return None


@contextmanager
def trained_model(run: Run) -> Iterator[LocalContender]:
    """The base as the trainer held it, with the adapter it saved."""
    from tunesmith.adapter import load_adapter
    from tunesmith.generate import LocalContender
    from tunesmith.model import load_base

    claim = run.read_json("claim.json")
    base = load_base(claim["base"], precision=claim["precision"], quantize=claim["quantized"])
    yield LocalContender("trainer", base, load_adapter(base, run.adapter_dir))


def _reply(trainer: LocalContender, messages: Sequence[Message]) -> Generated:
    """One at a time, as the server does: a batch adds in another order."""
    from tunesmith.generate import decode

    renderer = trainer.base.renderer
    ids = renderer.prompt(messages)
    (made,) = decode(trainer.model, [ids], stop_ids=renderer.stop_ids, max_new_tokens=MAX_NEW_TOKENS)
    return made


def _prompt_difference(trainer: LocalContender, example: Example, served: Reply) -> str | None:
    """A prompt must be, token for token, what stood before the answer in training."""
    renderer = trainer.base.renderer
    trained, prompt = renderer.render(example).ids, renderer.prompt(example.prompt)
    if list(trained[: len(prompt)]) != list(prompt):
        return f"its prompt of {len(prompt)} tokens is not the one it was trained with"
    if served.prompt_tokens != len(prompt):
        return f"the served prompt has {served.prompt_tokens} tokens, the trainer's {len(prompt)}"
    return None


def _reply_difference(trainer: LocalContender, example: Example, expected: Generated, served: Choice) -> str | None:
    """The same tokens, as sure of each; where the two best were as good as equal, either may have come next."""
    precision = str(trainer.base.model.dtype).removeprefix("torch.")
    tolerance = TOLERANCE_NATS.get(precision, TOLERANCE_LOW_PRECISION_NATS)
    ids = [token.id for token in served.tokens if token.id not in trainer.base.renderer.stop_ids]
    same = len(os.path.commonprefix([ids, expected.ids]))
    prompt = trainer.base.renderer.prompt(example.prompt)
    logprobs_TV = trainer.logprobs(prompt, expected.ids[:same])
    for place, token in enumerate(served.tokens[:same]):
        expected_nats = float(logprobs_TV[place, token.id])
        if token.logprob is None or not abs(expected_nats - token.logprob) <= tolerance:
            where = f"token {place + 1} of its reply has the log-probability"
            return f"{where} {token.logprob} in the served model, {expected_nats:.4f} in the trainer's"
    if (ids, served.reply.finish_reason) == (expected.ids, expected.finish_reason):
        return None
    best, second = logprobs_TV[same].topk(2).values.tolist()
    if best - second <= tolerance:
        return None
    return (
        f"the served model answers {served.reply.text!r}, the trainer's {trainer.base.renderer.decode(expected.ids)!r}"
    )


def _rows(run: Run, trainer: LocalContender) -> list[Example]:
    """Validation rows that can be asked; fixed questions where there are none, as when all rows hold tools."""
    lines = (run.directory / "validation.jsonl").read_text(encoding="utf-8").split("\n")
    examples = [example for line in lines if line and (example := parse_row(json.loads(line))[0])]
    kept: list[Example] = []
    for example in (one for one in examples if one.kind in ("chat", "preference") and one.prompt and not one.tools):
        with contextlib.suppress(RenderError):  # such a row was dropped from the run, too
            kept += [example] if trainer.room(example.prompt) >= MAX_NEW_TOKENS else []
        if len(kept) == ROWS:
            break
    return kept or [Example((Message("user", q), Message("assistant", a, trained=True))) for q, a in QUESTIONS]
