"""GGUF files: read back by transformers they are the same model, the same tokenizer; an adapter keeps what it adds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tunesmith.adapter import attach_lora, save_adapter
from tunesmith.errors import InputError, ModelError
from tunesmith.export.gguf import KINDS, _permuted, export_adapter, export_base
from tunesmith.facts import weights_sha256
from tunesmith.folders import home
from tunesmith.model import load_base

IDS_BT = torch.tensor([[1, 87, 85, 71, 84, 12, 44, 2]])
# Of logits between 30 and -30: the widths of what each type keeps of a weight.
TOLERANCE = {"f32": 1e-4, "f16": 0.05, "bf16": 0.4, "q8_0": 0.4}


def exported(folder: Path, kind: str = "f32", **options: Any) -> Path:
    return export_base(folder, kind, sha256=weights_sha256(folder), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_model_back(tiny_base: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    file = exported(tiny_base, kind)
    ours = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.inference_mode():
        apart = (ours(input_ids=IDS_BT).logits - theirs(input_ids=IDS_BT).logits).abs().max()
    assert float(apart) < TOLERANCE[kind]


def test_the_tokenizer_is_written(tiny_base: Path) -> None:
    reader = gguf.GGUFReader(exported(tiny_base))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = json.loads((tiny_base / "tokenizer.json").read_text())
    tokens = fields["tokenizer.ggml.tokens"]
    assert {text: number for number, text in enumerate(tokens)} == tokenizer["model"]["vocab"]
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1], "control tokens, then plain ones"
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.chat_template"] == (tiny_base / "chat_template.jinja").read_text()


def test_a_file_for_the_engine_holds_numbers_for_tokens(tiny_base: Path) -> None:
    fields = gguf.GGUFReader(exported(tiny_base, stop_id=2)).fields
    assert fields["tokenizer.ggml.tokens"].contents()[:3] == ["(0)", "(1)", "(2)"]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2


def test_a_file_is_made_once(tiny_base: Path) -> None:
    said: list[str] = []
    first = exported(tiny_base, say=said.append)
    before = first.stat().st_mtime_ns
    assert exported(tiny_base, say=said.append) == first
    assert first.stat().st_mtime_ns == before
    assert len(said) == 1
    assert [path.name for path in first.parent.iterdir()] == [first.name], "nothing is left beside it"
    assert first.is_relative_to(home() / "models")


def test_another_tokenizer_is_another_file(tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert exported(other) != exported(tiny_base)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen2"}, "architecture 'qwen2'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tiny_base: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=said):
        exported(other)
    assert not list((home()).rglob("*.gguf")), "nothing is half written"


def test_an_unknown_type_is_refused(tiny_base: Path) -> None:
    with pytest.raises(InputError, match="q4_0"):
        exported(tiny_base, "q4_0")


def test_other_tokenizers_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="splits text"):
        exported(other)


@pytest.fixture
def save(tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(scale: float) -> Path:
        base = load_base(str(tiny_base), precision="float32")
        model = attach_lora(base, rank=4, alpha=8.0, dropout=0.0, targets="all-linear")
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(0, scale) if scale else value.zero_()
        save_adapter(model, tmp_path / "adapter", base=base)
        return tmp_path / "adapter"

    return make


def test_an_adapter_keeps_what_it_adds_to_each_layer(tiny_base: Path, save: Callable[..., Path]) -> None:
    from safetensors.torch import load_file

    folder = save(0.3)
    reader = gguf.GGUFReader(export_adapter(folder, tiny_base))
    assert reader.fields["adapter.lora.alpha"].contents() == 8.0
    stored = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(stored) == len(tensors)
    config = json.loads((tiny_base / "config.json").read_text())
    for theirs, ours in (("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("mlp.up_proj", "ffn_up")):
        a, b = (tensors[f"base_model.model.model.layers.1.{theirs}.lora_{side}.weight"] for side in "AB")
        added = _permuted(b @ a, f"model.layers.1.{theirs}.weight", config)
        assert torch.allclose(stored[f"blk.1.{ours}.weight.lora_b"] @ stored[f"blk.1.{ours}.weight.lora_a"], added)


def test_an_adapter_without_effect_is_refused(tiny_base: Path, save: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="does not change"):
        export_adapter(save(0.0), tiny_base)


def test_an_adapter_that_is_more_than_a_and_b_is_refused(tiny_base: Path, save: Callable[..., Path]) -> None:
    folder = save(0.3)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ModelError, match="use_dora"):
        export_adapter(folder, tiny_base)
