"""What goes wrong for one row, adapter or load stays with it: whoever is beside it or comes later answers as alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_bank import saved
from tests.test_running import Wish, alone, answers, fed, prompt_of
from tunesmith.bank import Bank
from tunesmith.errors import ModelError
from tunesmith.mixture import Seats
from tunesmith.model import Base, load_base
from tunesmith.running import Running
from tunesmith.sampling import Drawing

A, B = prompt_of(1, 12), prompt_of(2, 9)


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters: two ordinary ones, two on the output layer as well, one on the MLPs, and a DoRA."""
    base, root = load_base(str(tiny_base), precision="float32"), tmp_path_factory.mktemp("adapters")
    made = {name: saved(base, root / name, seed, rank=4) for seed, name in enumerate(("a", "b"))}
    for seed, name in enumerate(("head_a", "head_b"), 5):
        made[name] = saved(base, root / name, seed, rank=4, targets=["q_proj", "lm_head"])
    made["mlp"] = saved(base, root / "mlp", 4, rank=4, targets=["gate_proj", "up_proj", "down_proj"])
    made["dora"] = saved(base, root / "dora", 7, rank=4, method="dora")
    return made


@pytest.fixture
def base(tiny_base: Path) -> Base:
    torch.set_num_threads(1)
    return load_base(str(tiny_base), precision="float32")


def changed(folder: Path, to: Path, *, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    shutil.copytree(folder, to)
    file = to / "adapter_model.safetensors"
    save_file({name: change(name, value).contiguous() for name, value in load_file(file).items()}, file)
    return to


def test_prompts_fed_together_have_their_own_adapter_on_the_output_layer(base: Base, folders: dict[str, Path]) -> None:
    expected = {name: alone(base, name and folders[name], B) for name in ("head_b", None)}
    expected_a = alone(base, folders["head_a"], A)
    running = Running(base)
    adapter = {name: name and running.put_on(folders[name]) for name in ("head_a", "head_b", None)}
    for name in ("head_b", None):
        running.reuse.clear()
        wishes = [Wish(A, adapter["head_a"], owner="x"), Wish(B, adapter[name], owner="y")]
        assert answers(running, wishes, chunk=100) == [expected_a, expected[name]]


def test_an_adapter_whose_copying_failed_is_copied_again(
    base: Base, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [alone(base, folders[name], prompt) for name, prompt in (("a", A), ("b", B))]
    running, fill, filled = Running(base), Seats._fill, []
    wishes = [Wish(prompt, running.put_on(folders[name])) for name, prompt in (("a", A), ("b", B))]

    def fail_once(seats: Seats, *arguments: Any, **keywords: Any) -> None:
        filled.append(1)
        if len(filled) == 6:
            raise RuntimeError("out of memory")
        fill(seats, *arguments, **keywords)

    monkeypatch.setattr(Seats, "_fill", fail_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(running, wishes)
    running.clear()
    assert answers(running, wishes) == expected


def test_adapters_are_off_where_putting_them_on_failed(
    base: Base, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(base, None, A)
    running = Running(base)
    head = [running.put_on(folders[name]) for name in ("head_a", "head_b")]
    use_of, asked = Bank._use_of, []

    def fail_second(bank: Bank, *arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("out of memory")
        return use_of(bank, *arguments)

    monkeypatch.setattr(Bank, "_use_of", fail_second)
    with pytest.raises(RuntimeError, match="out of memory"), running.bank.using(head):
        pass
    assert alone(base, None, A) == expected


def test_numbers_that_are_not_finite_fail_their_own_reply_only(
    base: Base, folders: dict[str, Path], tmp_path: Path
) -> None:
    longer = prompt_of(5, 80)  # beside it the short row's hidden columns reach to where the bad ones were
    expected = [alone(base, None, B), alone(base, None, longer)]
    running = Running(base)
    huge = running.put_on(changed(folders["mlp"], tmp_path / "huge", change=lambda name, value: value * 1e7))
    prompt = running.begin(prompt_of(3, 30), adapter=huge)
    running.step([(prompt, 100)])
    assert isinstance(prompt.failure, ModelError) and "not finite" in str(prompt.failure)
    ready = fed(running, prompt_of(4, 60))
    (row,) = running.join(ready, [Drawing()])
    row.adapter = huge
    running.step()
    assert isinstance(row.failure, ModelError)
    running.leave(row)
    assert answers(running, [Wish(B), Wish(longer)], chunk=100) == expected


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_with_positions_that_follow_the_longest_are_decoded_alone(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / kind
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "config.json").read_text())
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 8.0}
    if kind == "longrope":
        half = config["hidden_size"] // config["num_attention_heads"] // 2
        rope |= {"short_factor": [1.0] * half, "long_factor": [2.0] * half, "original_max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope, "max_position_embeddings": 128}))
    base = load_base(str(folder), precision="float32")
    running = Running(base)
    assert kind in str(running.alone)
    wishes = [Wish(A, tokens=6), Wish(prompt_of(3, 100), tokens=6, arrives=2)]
    assert answers(running, wishes) == [alone(base, None, wish.prompt, tokens=6) for wish in wishes]


def test_an_adapter_that_peft_cannot_read_leaves_nothing_on(
    base: Base, folders: dict[str, Path], tmp_path: Path
) -> None:
    expected = [alone(base, None, A), alone(base, folders["a"], A), alone(base, folders["dora"], A)]
    running = Running(base)
    good = running.put_on(folders["a"])
    cut = changed(
        folders["dora"],
        tmp_path / "cut",
        change=lambda name, value: value[:, :-1] if "1.mlp.up_proj.lora_A" in name else value,
    )
    for _ in range(2):
        with pytest.raises(ModelError, match="does not fit this base"):
            running.put_on(cut)
        assert answers(running, [Wish(A), Wish(A, good, owner="b")]) == expected[:2]
        dora = running.put_on(folders["dora"])
        assert answers(running, [Wish(A), Wish(A, good, owner="b"), Wish(A, dora)]) == expected


def test_a_switched_adapter_stays_as_long_as_a_request_holds_it(base: Base, folders: dict[str, Path]) -> None:
    expected = alone(base, folders["dora"], A)
    running = Running(base)
    first, second = running.put_on(folders["dora"]), running.put_on(folders["dora"])
    running.forget_unused()
    assert answers(running, [Wish(A, first)]) == [expected] and len(running.peft.peft_config) == 2
    del first
    running.forget_unused()
    assert answers(running, [Wish(A, second)]) == [expected] and len(running.peft.peft_config) == 1
