"""Running out of memory: first half the tokens at once and the same result, then a stop with the numbers."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import losses
from tunesmith.errors import RunError
from tunesmith.model import Base, load_base
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.train.loop import Interrupted
from tunesmith.train.memory import is_out_of_memory
from tunesmith.worker import Job, execute, prepare

MakeRecipe = Callable[..., Recipe]
TOKENS = 512  # the setting; a row of the tiny set has about a hundred
FAILURES: dict[str, Callable[[], Any]] = {
    "the processor's allocator": lambda: torch.empty(10**13),  # the real thing
    "an accelerator's": lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0")),
    "Python's": lambda: _raise(MemoryError()),
}


def _raise(error: BaseException) -> None:
    raise error


def too_small_for(base: Base, tokens: float, fail: Callable[[], Any]) -> list[int]:
    """Let the model fail while it trains on so many tokens at once; the sizes it was given."""
    sizes: list[int] = []

    def hook(module: Any, args: Any, keywords: Any) -> None:
        if torch.is_grad_enabled() and module.training:
            sizes.append(keywords["input_ids"].shape[1])
            if sizes[-1] >= tokens:
                fail()

    base.model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    return sizes


def train(recipe: Recipe, out: Path, *, base: Base | None = None, watch: Any = lambda metric: None) -> Job:
    job = prepare(recipe, out, say=lambda text: None, base=base)
    execute(job, watch=watch, say=lambda text: None)
    return job


def events(run: Run, name: str) -> list[dict[str, Any]]:
    lines = (run.directory / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == name]


@pytest.fixture
def recipe(small_recipe: MakeRecipe) -> Recipe:
    return small_recipe(micro_batch_tokens=TOKENS, epochs=1)


@pytest.fixture
def usual(recipe: Recipe, tiny_base: Path, proof_here: None, tmp_path: Path) -> tuple[Run, int]:
    """A run without any trouble, and the most tokens that it had at once."""
    base = load_base(str(tiny_base), precision="float32")
    sizes = too_small_for(base, float("inf"), list)
    return train(recipe, tmp_path / "undisturbed", base=base).run, max(sizes)


@pytest.mark.parametrize("cause", FAILURES)
def test_half_as_many_tokens_at_once_give_the_same_adapter(
    cause: str, recipe: Recipe, tiny: Base, usual: tuple[Run, int], tmp_path: Path
) -> None:
    undisturbed, largest = usual
    sizes = too_small_for(tiny, largest, FAILURES[cause])
    run = train(recipe, tmp_path / "short", base=tiny).run

    (event,) = events(run, "out_of_memory")
    assert event["next_tokens"] == TOKENS // 2
    assert "GiB are free" in event["reason"]
    assert sizes.count(largest) == 1  # it is not tried again
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-5)
    assert losses(run, "validation") == pytest.approx(losses(undisturbed, "validation"), rel=1e-5)
    ours, theirs = (load_file(r.adapter_dir / "adapter_model.safetensors") for r in (run, undisturbed))
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours]).norm()
    assert apart <= 1e-4 * torch.cat([x.flatten() for x in theirs.values()]).norm()


def test_a_resumed_run_remembers_that_memory_was_short(
    recipe: Recipe, tiny: Base, usual: tuple[Run, int], tmp_path: Path
) -> None:
    sizes = too_small_for(tiny, usual[1], FAILURES["Python's"])

    def stop(metric: dict[str, Any]) -> None:
        if (metric["kind"], metric["step"]) == ("train", 3):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", base=tiny, watch=stop)
    run = train(recipe, tmp_path / "run", base=tiny).run
    assert run.status["state"] == "finished"
    assert len(events(run, "out_of_memory")) == 1
    assert sizes.count(usual[1]) == 1


@pytest.mark.parametrize(
    ("cause", "numbers"),
    [("the processor's allocator", "37252.90 GiB were asked for"), ("an accelerator's", "2.50 GiB were asked for")],
)
def test_the_second_time_the_run_stops_with_the_numbers_and_what_to_do(
    cause: str, numbers: str, recipe: Recipe, tiny: Base, tmp_path: Path
) -> None:
    too_small_for(tiny, 60, FAILURES[cause])
    with pytest.raises(RunError) as caught:
        train(recipe, tmp_path / "run", base=tiny)
    text = str(caught.value)
    assert re.search(rf"Out of memory after step 0 with at most {TOKENS // 2} tokens at once", text)
    assert re.search(rf"{numbers}, \d+\.\d\d GiB are free\. Set micro_batch_tokens below {TOKENS // 2}", text)
    run = Run(tmp_path / "run")
    assert run.status["state"] == "failed"
    assert run.status["reason"] == text
    assert (run.checkpoints_dir / "step-000000").is_dir()


def test_a_row_that_is_too_long_alone_is_named_as_the_reason(
    small_recipe: MakeRecipe, tiny: Base, tmp_path: Path
) -> None:
    too_small_for(tiny, 50, FAILURES["Python's"])
    with pytest.raises(RunError, match=r"One row alone has 10\d tokens: lower max_length"):
        train(small_recipe(micro_batch_tokens=128), tmp_path / "run", base=tiny)


def test_a_shortage_beside_the_micro_batches_stops_with_the_numbers_too(
    recipe: Recipe, tiny: Base, tmp_path: Path, monkeypatch: Any
) -> None:
    """The optimiser makes its state in the first step."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: FAILURES["the processor's allocator"]())
    with pytest.raises(RunError, match=r"beside the micro-batches: 37252.90 GiB were asked for.*smaller base or rank"):
        train(recipe, tmp_path / "run", base=tiny)
    assert "beside the micro-batches" in Run(tmp_path / "run").status["reason"]


def test_another_error_is_not_taken_for_a_shortage(recipe: Recipe, tiny: Base, tmp_path: Path) -> None:
    too_small_for(tiny, 0, lambda: _raise(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(recipe, tmp_path / "run", base=tiny)
    assert not events(Run(tmp_path / "run"), "out_of_memory")
    assert not is_out_of_memory(ValueError("memory"))
