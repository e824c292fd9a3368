"""Continuous batching: whatever comes and goes beside it, a row's tokens are those it has alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import FAMILIES
from tests.test_bank import saved
from tunesmith.adapter import detach, load_adapter
from tunesmith.generate import decode
from tunesmith.model import Base, load_base
from tunesmith.running import IDLE_BYTES, Prompt, Row, Running, Worn
from tunesmith.sampling import Drawing, Sampling
from tunesmith.slots import COLUMNS, forward

NEW = 8
QUICK = ("llama", "gemma2")  # a plain one, and one with windows and soft caps
SOME_FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]


@dataclass(eq=False)
class Wish:
    """A reply that is wanted of a prompt, from the step with this number on."""

    prompt: list[int]
    adapter: Worn = None
    arrives: int = 0
    tokens: int = NEW
    sampling: Sampling = field(default_factory=Sampling)
    owner: str = "a"


def answers(running: Running, wishes: list[Wish], *, chunk: int = 16) -> list[list[int]]:
    """Tokens of each, all run together."""
    made: list[list[int]] = [[] for _ in wishes]
    prompts: dict[Prompt, int] = {}
    rows: dict[Row, int] = {}
    for step in itertools.count():
        for number, wish in enumerate(wishes):
            if wish.arrives == step:
                prompts[running.begin(wish.prompt, adapter=wish.adapter, owner=wish.owner)] = number
        running.step([(prompt, chunk) for prompt in prompts if not prompt.is_ready])
        for row, number in list(rows.items()):
            made[number].append(row.token.id)
            if len(made[number]) >= wishes[number].tokens:
                running.leave(row)
                del rows[row]
        for prompt, number in list(prompts.items()):
            if prompt.is_ready:
                del prompts[prompt]
                (row,) = running.join(prompt, [Drawing(wishes[number].sampling)])
                rows[row] = number
                made[number] += [] if prompt.left else [row.token.id]
        if not rows and not prompts and step >= max(wish.arrives for wish in wishes):
            return [ids[: wish.tokens] for ids, wish in zip(made, wishes, strict=True)]
    raise AssertionError


def fed(running: Running, ids: list[int], **keywords: Any) -> Prompt:
    """A prompt that is ready, fed beside whatever runs."""
    prompt = running.begin(ids, **keywords)
    while not prompt.is_ready:
        running.step([(prompt, 100)])
    return prompt


def prompt_of(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 259) for _ in range(length)]


def alone(base: Base, folder: Path | None, prompt: list[int], *, tokens: int = NEW) -> list[int]:
    """Today's way: the adapter on the base by PEFT, one prompt at a time."""
    model: Any = load_adapter(base, folder) if folder else base.model
    (output,) = decode(model, [prompt], stop_ids=frozenset(), max_new_tokens=tokens)
    if folder:
        detach(model)
    return output.ids


@pytest.mark.parametrize("name", SOME_FAMILIES)
def test_rows_that_come_and_go_answer_as_alone(
    name: str, tiny_family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    base = load_base(str(tiny_family(name)), precision="float32")
    prompts = [prompt_of(seed, length) for seed, length in enumerate((3, 90, 40, 61, 1))]
    expected = [alone(base, None, prompt) for prompt in prompts]
    running = Running(base)
    assert running.alone is None
    wishes = [Wish(prompt, arrives=2 * number) for number, prompt in enumerate(prompts)]
    assert answers(running, wishes) == expected
    assert not running.rows and 0 < running.slots.num_bytes <= IDLE_BYTES
    monkeypatch.setattr("tunesmith.running.IDLE_BYTES", 0)
    assert answers(running, wishes) == expected  # first in the places that the others left
    assert not running.rows and running.slots.num_bytes == 0


def test_a_row_may_take_the_place_of_one_that_grew(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), precision="float32")
    running = Running(base)
    long, short = Wish(prompt_of(0, 20), tokens=COLUMNS + 10), Wish(prompt_of(1, 20))
    for wish in (long, short):
        assert answers(running, [wish]) == [alone(base, None, wish.prompt, tokens=wish.tokens)]


@pytest.fixture(scope="module")
def world(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Running, dict[tuple[int, int], list[int]]]:
    """A base with three adapters, and what each of them and the base answer to six prompts, alone."""
    torch.set_num_threads(1)
    base = load_base(str(tiny_base), precision="float32")
    folder = tmp_path_factory.mktemp("adapters")
    folders = [None, *(saved(base, folder / str(seed), seed, rank=seed + 1) for seed in range(3))]
    system = prompt_of(99, 40)
    prompts = [prompt_of(seed, 3 + 9 * seed) for seed in range(3)] + [
        [*system, *prompt_of(seed, 5)] for seed in range(3)
    ]
    expected = {
        (which, number): alone(base, of, prompt)
        for which, of in enumerate(folders)
        for number, prompt in enumerate(prompts)
    }
    running = Running(base)
    running.prompts = prompts  # type: ignore[attr-defined]
    running.adapters = [running.put_on(of) if of else None for of in folders]  # type: ignore[attr-defined]
    return running, expected


@settings(max_examples=15, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 12), st.integers(1, NEW)), min_size=1, max_size=8
    ),
    chunk=st.sampled_from([3, 16, 100]),
    owners=st.integers(1, 3),
)
def test_any_order_of_arrival_gives_each_adapters_own_tokens(
    world: tuple[Running, dict[tuple[int, int], list[int]]],
    asked: list[tuple[int, int, int, int]],
    chunk: int,
    owners: int,
) -> None:
    running, expected = world
    wishes = [
        Wish(running.prompts[number], running.adapters[which], arrives, tokens, owner=str(place % owners))  # type: ignore[attr-defined]
        for place, (which, number, arrives, tokens) in enumerate(asked)
    ]
    found = answers(running, wishes, chunk=chunk)
    for ids, (which, number, _, tokens) in zip(found, asked, strict=True):
        assert ids == expected[which, number][:tokens]


def test_a_sampled_row_does_not_depend_on_its_neighbours(world: tuple[Running, Any]) -> None:
    running, _ = world
    sampled = Wish([5, 6, 7], running.adapters[1], sampling=Sampling(1.5, 0.9, seed=3))  # type: ignore[attr-defined]
    (single,) = answers(running, [sampled])
    others = [Wish(prompt_of(seed, 20), arrives=seed, sampling=Sampling(1.0, seed=seed)) for seed in range(4)]
    assert answers(running, [*others[:2], sampled, *others[2:]])[2] == single


def test_a_prompt_is_reused_by_its_owner_and_adapter_only(world: tuple[Running, Any]) -> None:
    running, _ = world
    running.reuse.clear()
    adapter = running.adapters[1]  # type: ignore[attr-defined]
    system = prompt_of(7, 60)

    def reused(question: int, *, worn: Worn, owner: str) -> int:
        prompt = fed(running, [*system, *prompt_of(question, 4)], adapter=worn, owner=owner)
        (row,) = running.join(prompt, [Drawing()])
        running.leave(row)
        return prompt.reused

    assert reused(1, worn=adapter, owner="a") == 0
    assert reused(2, worn=adapter, owner="a") == 60
    assert reused(3, worn=adapter, owner="b") == 0
    assert reused(3, worn=None, owner="a") == 0
    assert reused(1, worn=adapter, owner="a") == 63, "one token is always fed"
    running.reuse.most_bytes = 2 * 64 * running.token_bytes
    assert reused(4, worn=running.adapters[2], owner="a") == 0  # type: ignore[attr-defined]
    assert reused(2, worn=adapter, owner="b") == 0, "the ones used longest ago are gone"
    assert running.reuse.num_bytes <= running.reuse.most_bytes


def test_several_replies_of_one_prompt_begin_with_it_once(world: tuple[Running, Any]) -> None:
    running, expected = world
    for first in (True, False):
        prompt = fed(running, running.prompts[2], adapter=running.adapters[2], owner="n")  # type: ignore[attr-defined]
        assert prompt.left == (0 if first else 1), "the second time all but its last token is known"
        rows = running.join(prompt, [Drawing() for _ in range(3)])
        made = [[row.token.id] if first else [] for row in rows]
        while len(made[0]) < NEW:
            running.step()
            for ids, row in zip(made, rows, strict=True):
                ids.append(row.token.id)
        assert made == [expected[2, 2]] * 3
        for row in rows:
            running.leave(row)


def test_room_is_counted_in_bytes_of_the_longest_row(world: tuple[Running, Any]) -> None:
    running, _ = world
    running.cache_bytes = 4 * 100 * running.token_bytes
    assert running.fits(4, 100) and not running.fits(5, 100) and not running.fits(4, 101)


def test_a_base_that_cannot_share_steps_answers_alone(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(tiny_base), precision="float32")
    prompts = [prompt_of(seed, 5 + 20 * seed) for seed in range(3)]
    expected = [alone(base, None, prompt) for prompt in prompts]

    def wrong(*args: Any, **keywords: Any) -> torch.Tensor:
        return forward(*args, **keywords) + 0.1 * torch.arange(259)

    monkeypatch.setattr("tunesmith.running.forward", wrong)
    running = Running(base)
    assert running.alone and "differ by" in running.alone
    assert answers(running, [Wish(prompt, arrives=number) for number, prompt in enumerate(prompts)]) == expected
