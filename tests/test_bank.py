"""The bank: rows of one batch with different adapters give what PEFT gives with one adapter at a time."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import FAMILIES
from tunesmith.adapter import attach_lora, detach, load_adapter, save_adapter
from tunesmith.bank import Bank, why_not
from tunesmith.errors import ModelError
from tunesmith.mixture import SLACK, Adapter
from tunesmith.model import Base, load_base

TOLERANCE = 1e-4
QUICK = ("llama", "phi3")  # with linear layers apart, and with those of one input in one
SOME_FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
Targets = str | list[str]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    torch.set_num_threads(1)
    return load_base(str(tiny_base), precision="float32")


def saved(
    base: Base, folder: Path, seed: int, *, rank: int, method: str = "lora", targets: Targets = "all-linear"
) -> Path:
    """An adapter with an effect."""
    torch.manual_seed(seed)
    model = attach_lora(base, rank=rank, alpha=8.0, dropout=0.0, targets=targets, method=method)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    save_adapter(model, folder, base=base)
    detach(model)
    return folder


@torch.inference_mode()
def by_peft(base: Base, folder: Path | None, ids_BT: torch.Tensor) -> torch.Tensor:
    if folder is None:
        return torch.as_tensor(base.model(input_ids=ids_BT).logits)
    model = load_adapter(base, folder)
    logits = model(input_ids=ids_BT).logits
    detach(model)
    return torch.as_tensor(logits)


@torch.inference_mode()
def by_bank(base: Base, bank: Bank, adapters: list[Adapter | None], ids_BT: torch.Tensor) -> torch.Tensor:
    with bank.using(adapters):
        return torch.as_tensor(base.model(input_ids=ids_BT).logits)


@pytest.mark.parametrize("name", SOME_FAMILIES)
def test_a_mixed_batch_is_peft_with_one_adapter_at_a_time(
    name: str, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    base = load_base(str(tiny_family(name)), precision="float32")
    draw = random.Random(name)
    some: Targets = ["down_proj", "o_proj"] if name == "phi3" else ["q_proj", "v_proj", "down_proj"]
    folders = [saved(base, tmp_path / str(seed), seed, rank=draw.choice([1, 2, 3, 5, 8])) for seed in range(3)]
    folders.append(saved(base, tmp_path / "rs", 4, rank=7, method="rslora", targets=some))
    ids_BT = torch.tensor([[draw.randrange(3, 259)] for _ in range(9)])
    expected = {folder: by_peft(base, folder, ids_BT) for folder in (*folders, None)}
    bank = Bank(base)
    adapters = {folder: bank.read(folder) for folder in folders}
    for _ in range(6):
        chosen = [draw.choice([*folders, None]) for _ in range(draw.choice([1, 4, 9]))]
        worn = [adapters[folder] if folder else None for folder in chosen]
        found = by_bank(base, bank, worn, ids_BT[: len(chosen)])
        wanted = torch.stack([expected[folder][row] for row, folder in enumerate(chosen)])
        assert torch.allclose(found, wanted, atol=TOLERANCE)
    long_BT = torch.tensor([[draw.randrange(3, 259) for _ in range(70)]])
    found = by_bank(base, bank, [adapters[folders[3]]], long_BT)
    assert torch.equal(base.model(input_ids=long_BT).logits, by_peft(base, None, long_BT)), "it is put off again"
    assert torch.allclose(found, by_peft(base, folders[3], long_BT), atol=TOLERANCE)


def test_adapters_of_all_rows_different_lie_in_order_and_stay_when_they_come_back(base: Base, tmp_path: Path) -> None:
    bank = Bank(base)
    adapters = [bank.read(saved(base, tmp_path / str(seed), seed, rank=4)) for seed in range(5)]
    ids_BT = torch.tensor([[5], [6], [7], [8]])
    by_bank(base, bank, [*adapters[:4]], ids_BT)
    assert bank._many and bank._many.in_order
    held = list(bank._seats.order)
    by_bank(base, bank, [adapters[1], adapters[0]], ids_BT[:2])
    assert bank._seats.order == held, "nothing was moved"
    by_bank(base, bank, [adapters[4], adapters[0]], ids_BT[:2])
    assert bank._seats.order[:2] == [adapters[0], adapters[4]]


def test_a_row_of_the_base_is_not_given_the_adapter_whose_idle_place_it_stands_at(base: Base, tmp_path: Path) -> None:
    bank = Bank(base)
    adapters: list[Adapter | None] = [
        bank.read(saved(base, tmp_path / str(seed), seed, rank=2)) for seed in range(SLACK + 2)
    ]
    ids_BT = torch.tensor([[seed + 5] for seed in range(len(adapters))])
    before = by_bank(base, bank, adapters, ids_BT)
    after = by_bank(base, bank, [None, *adapters[1:]], ids_BT)
    assert torch.allclose(after[0], by_peft(base, None, ids_BT)[0], atol=TOLERANCE)
    assert not torch.allclose(after[0], before[0], atol=TOLERANCE) and torch.allclose(after[1:], before[1:])


def changed(folder: Path, to: Path, *, tensors: dict[str, torch.Tensor | None]) -> Path:
    """A copy of an adapter with tensors put in its file, or left out where None."""
    shutil.copytree(folder, to)
    values = {**load_file(folder / "adapter_model.safetensors"), **tensors}
    save_file({name: value for name, value in values.items() if value is not None}, to / "adapter_model.safetensors")
    return to


def test_every_tensor_of_the_file_has_a_place_and_the_whole_has_an_effect(base: Base, tmp_path: Path) -> None:
    folder, bank = saved(base, tmp_path / "a", 0, rank=2), Bank(base)
    names = sorted(load_file(folder / "adapter_model.safetensors"))
    a, b = names[:2]
    for number, tensors in enumerate(
        ({"base_model.model.model.extra.lora_A.weight": torch.ones(2, 2)}, {b: None}, {a: torch.ones(2, 5)})
    ):
        with pytest.raises(ModelError, match="does not fit this base"):
            bank.read(changed(folder, tmp_path / f"bad{number}", tensors=tensors))
    values = load_file(folder / "adapter_model.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in values.items() if "lora_B" in name}
    with pytest.raises(ModelError, match="does not change"):
        bank.read(changed(folder, tmp_path / "zero", tensors=zeros))
    with pytest.raises(ModelError, match="does not change"):
        bank.read(changed(folder, tmp_path / "nan", tensors={b: torch.full_like(values[b], float("nan"))}))
    tiny = {name: value * 1e-9 for name, value in values.items() if "lora_B" in name}
    with pytest.raises(ModelError, match="does not change"):
        bank.read(changed(folder, tmp_path / "tiny", tensors=tiny))


def test_what_the_bank_cannot_hold_is_named(base: Base, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "a", 0, rank=2)
    assert why_not(folder) is None
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, words in (
        ({"use_dora": True}, "use_dora is true"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"something_new": 1}, "something_new"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        assert words in str(why_not(folder))
