"""What a model folder is, read without its weights; broken folders say what is broken."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FAMILIES
from tunesmith.errors import ModelError
from tunesmith.facts import file_sha256, read_facts, safetensors_header, weights_sha256


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "model"))


@pytest.mark.parametrize("name", FAMILIES)
def test_facts_equal_the_loaded_model(name: str, tiny_family: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    facts = read_facts(tiny_family(name))
    model = AutoModelForCausalLM.from_pretrained(tiny_family(name))
    assert facts.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.weight_bytes == 4 * facts.num_parameters
    assert (facts.hidden_size, facts.num_layers, facts.vocab_size, facts.max_positions) == (32, 2, 259, 512)
    assert facts.model_type == model.config.model_type


def test_the_identity_of_a_folder_is_its_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    before = weights_sha256(folder)
    assert before == file_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "README.md").write_text("new")
    assert weights_sha256(folder) == before
    shutil.copy(file, folder / "second.safetensors")
    two = weights_sha256(folder)
    (folder / "second.safetensors").rename(folder / "other.safetensors")
    assert len({before, two, weights_sha256(folder)}) == 3


def _write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (_write("config.json", b"{"), "cannot be read"),
        (_write("config.json", b"[]"), "holds no object"),
        (_write("config.json", b'{"hidden_size": 4}'), "has no 'num_hidden_layers'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no safetensors weights"),
        (_write("model.safetensors", b"abc"), "no readable safetensors"),
        (_write("model.safetensors", b"\xff" * 20), "header too long"),
        (_write("model.safetensors", (50).to_bytes(8, "little") + b"{"), "no readable safetensors"),
    ],
)
def test_a_broken_folder_says_what_is_broken(folder: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=words):
        read_facts(folder)


def test_a_nested_text_configuration_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "outer", "text_config": config}))
    assert (read_facts(folder).model_type, read_facts(folder).hidden_size) == ("outer", 32)


def test_a_header_lists_every_tensor(folder: Path) -> None:
    header = safetensors_header(folder / "model.safetensors")
    assert "__metadata__" not in header
    assert header["model.embed_tokens.weight"]["shape"] == [259, 32]
