"""Adapters and trained models: saved in stock formats, reloaded, merged, and refused where they do not belong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_generate import randomised
from tunesmith.adapter import (
    ADAPTER_FILE,
    PIN_FILE,
    adapter_base,
    adapter_folder,
    add_adapter,
    attach_lora,
    detach,
    load_adapter,
    logit_change,
    save_adapter,
)
from tunesmith.errors import InputError, ModelError
from tunesmith.model import Base, load_base
from tunesmith.runs import create_run

IDS_BT = torch.tensor([[1, 50, 60, 70, 2, 80]])


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    torch.set_num_threads(1)
    return load_base(str(tiny_base), precision="float32")


def make_adapter(base: Base, folder: Path, *, seed: int = 0) -> torch.Tensor:
    """Save an adapter that changes the model; its logits."""
    model = randomised(base, seed)
    with torch.no_grad():
        logits_BTV = model(input_ids=IDS_BT).logits.clone()
    save_adapter(model, folder, base=base)
    detach(model)
    return logits_BTV


@pytest.fixture
def adapter(base: Base, tmp_path: Path) -> Path:
    make_adapter(base, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_saved_adapter_gives_the_same_logits_in_stock_peft(base: Base, tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected_BTV = make_adapter(base, tmp_path / "adapter")
    stock = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.allclose(stock(input_ids=IDS_BT).logits, expected_BTV, atol=1e-6)
        model = load_adapter(base, tmp_path / "adapter")
        assert torch.equal(model(input_ids=IDS_BT).logits, expected_BTV)
    detach(model)


def test_base_then_adapter_then_base_gives_the_same_bits(base: Base, adapter: Path) -> None:
    with torch.no_grad():
        before_BTV = base.model(input_ids=IDS_BT).logits
        model = load_adapter(base, adapter)
        tuned_BTV = model(input_ids=IDS_BT).logits
        assert logit_change(base, model) > 0.01
        detach(model)
        assert torch.equal(base.model(input_ids=IDS_BT).logits, before_BTV)
    assert not torch.allclose(before_BTV, tuned_BTV, atol=1e-2)


def test_a_fresh_adapter_changes_nothing_and_is_float32(base: Base) -> None:
    with torch.no_grad():
        before_BTV = base.model(input_ids=IDS_BT).logits
        model = attach_lora(base, rank=2, alpha=4.0, dropout=0.0, targets=["q_proj"])
        assert torch.equal(model(input_ids=IDS_BT).logits, before_BTV)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4
    assert all("q_proj.lora_" in name for name in trained)
    detach(model)
    with pytest.raises(InputError, match="do not fit"):
        attach_lora(base, rank=2, alpha=4.0, dropout=0.0, targets=["nope"])


def test_an_adapter_of_a_bfloat16_base_is_float32_and_saved_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base), precision="bfloat16")
    make_adapter(base, tmp_path / "adapter")
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter" / ADAPTER_FILE).values()} == {torch.float32}
    detach(load_adapter(base, tmp_path / "adapter"))


def test_several_adapters_live_side_by_side_on_one_base(base: Base, tmp_path: Path) -> None:
    expected = {name: make_adapter(base, tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))}
    model = add_adapter(base, tmp_path / "a", name="a")
    model = add_adapter(base, tmp_path / "b", name="b", model=model)
    with torch.no_grad():
        for name in ("a", "b", "a"):
            model.set_adapter(name)
            assert torch.allclose(model(input_ids=IDS_BT).logits, expected[name], atol=1e-6)
    detach(model)


def test_an_adapter_is_refused_on_another_base(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="was trained on another base: sha256"):
        load_adapter(load_base(str(other), precision="float32"), adapter)


def test_an_adapter_is_refused_under_another_template(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    with pytest.raises(ModelError, match="another chat template"):
        load_adapter(load_base(str(other), precision="float32"), adapter)


@pytest.mark.parametrize("change", ["missing", "renamed", "added"])
def test_an_adapter_whose_tensors_are_not_all_applied_is_refused(base: Base, adapter: Path, change: str) -> None:
    tensors = load_file(adapter / ADAPTER_FILE)
    first = next(iter(tensors))
    if change != "added":
        taken = tensors.pop(first)
    if change != "missing":
        tensors[first.replace("layers.0", "layers.7")] = taken if change == "renamed" else tensors[first].clone()
    save_file(tensors, adapter / ADAPTER_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not fit this base: of its"):
        load_adapter(base, adapter)
    leftovers = [name for name, _ in base.model.named_parameters() if "lora_" in name]
    assert leftovers == []  # a refused adapter must not stay on the base


def test_the_pin_names_the_base_and_the_template(base: Base, adapter: Path) -> None:
    pin = json.loads((adapter / PIN_FILE).read_text())
    assert pin["base_sha256"] == base.sha256
    assert pin["template_sha256"] == base.renderer.template_sha256
    assert pin["stop_ids"] == [2]
    assert adapter_base(adapter) == base.name
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", ADAPTER_FILE, PIN_FILE]


def test_a_run_that_is_not_finished_has_no_adapter_to_show(tmp_path: Path, adapter: Path) -> None:
    run = create_run(tmp_path / "run", recipe={"base": "b"})
    run.set_status("failed")
    with pytest.raises(InputError, match="is failed, not finished"):
        adapter_folder(run.directory)
    run.set_status("finished")
    assert adapter_folder(run.directory) == run.adapter_dir
    assert adapter_folder(adapter) == adapter
    with pytest.raises(InputError, match="is no adapter"):
        adapter_base(tmp_path)
