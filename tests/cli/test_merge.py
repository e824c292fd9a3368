"""`tunesmith merge`: one stock model folder, compared with its parts before it gets its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunesmith.adapter as adapter_module
from tunesmith.adapter import attach_lora, save_adapter
from tunesmith.model import load_base

Tunesmith = Callable[..., Any]


def make_adapter(base_folder: Path, folder: Path, *, scale: float = 0.1, targets: Any = "all-linear") -> Path:
    base = load_base(str(base_folder), precision="float32")
    torch.manual_seed(0)
    model = attach_lora(base, rank=4, alpha=8.0, dropout=0.0, targets=targets)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=scale)
    save_adapter(model, folder, base=base)
    return folder


@pytest.fixture
def bfloat16_base(tiny_base: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "bfloat16"
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_and_what_was_compared_is_kept(
    tunesmith: Tunesmith, tiny_base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    answer = tunesmith("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert document["merge"]["largest_logit_difference"] < 1e-4
    assert document["merge"]["argmax_agreement"] == 1.0
    kept = json.loads((tmp_path / "merged" / "tunesmith.json").read_text())
    assert document == {"out": str(tmp_path / "merged"), **kept}
    assert kept["base"] == str(tiny_base)
    again = tunesmith("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert again.code == 2
    assert "exists" in again.document["error"]["message"]

    answer = tunesmith("chat", tmp_path / "merged", "--message", "Hello", "--max-tokens", 2, "--json")
    assert answer.code == 0, answer.err


def test_the_merged_model_is_stored_as_its_base_is(tunesmith: Tunesmith, bfloat16_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(bfloat16_base, tmp_path / "adapter")
    answer = tunesmith("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert answer.code == 0, answer.err
    assert answer.document["merge"]["stored"] == "bfloat16"
    assert 0 < answer.document["merge"]["largest_logit_difference"] < 1
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_16_bits_that_change_the_answers_give_way_to_float32(
    tunesmith: Tunesmith, bfloat16_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_module, "MERGE_AGREEMENT", 1.01)  # no rounding is good enough
    adapter = make_adapter(bfloat16_base, tmp_path / "adapter")
    answer = tunesmith("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert answer.code == 0, answer.err
    assert "Stored in bfloat16 it does not answer as its parts do" in answer.err
    report = answer.document["merge"]
    assert (report["stored"], report["instead_of"]["stored"]) == ("float32", "bfloat16")
    assert report["largest_logit_difference"] < 1e-4
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_merge_that_changes_the_answers_is_refused_and_leaves_nothing(
    stored: str, tunesmith: Tunesmith, tiny_base: Path, bfloat16_base: Path, tmp_path: Path
) -> None:
    """An adapter on an output layer that is also the embedding: merged into the one it would change the other."""
    base = tiny_base if stored == "float32" else bfloat16_base
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.3, targets=["lm_head"])
    answer = tunesmith("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert answer.code == 1
    assert "does not answer as its parts do" in answer.document["error"]["message"]
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


def test_what_is_no_adapter_is_refused(tunesmith: Tunesmith, tiny_base: Path, tmp_path: Path) -> None:
    answer = tunesmith("merge", tiny_base, "--out", tmp_path / "merged", "--json")
    assert answer.code == 2
    assert "is no adapter" in answer.document["error"]["message"]
    tensors_only = tmp_path / "broken"
    tensors_only.mkdir()
    save_file({"x": torch.zeros(1)}, tensors_only / "adapter_model.safetensors")
    assert tunesmith("merge", tensors_only, "--out", tmp_path / "merged").code == 2


def test_a_place_that_cannot_be_written_is_named(tunesmith: Tunesmith, tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    (tmp_path / "file").write_text("")
    answer = tunesmith("merge", adapter, "--out", tmp_path / "file" / "merged", "--json")
    assert answer.code == 1
    assert "cannot be written" in answer.document["error"]["message"]
