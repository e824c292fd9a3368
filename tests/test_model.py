"""Bases: found, loaded as they are or in 4 bits, and refused with what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import InputError, ModelError
from tunesmith.model import find_base, load_base, load_renderer


@pytest.mark.parametrize("name", ["no/such-model-here", "not a name!", "/no/such/folder", ""])
def test_a_base_that_cannot_be_found_is_an_input_error_with_what_to_name(name: str) -> None:
    with pytest.raises(InputError, match=r"Name a folder, a Hugging Face model you may download, or smollm2"):
        find_base(name)


def test_a_folder_is_a_base_and_a_broken_one_says_what_is_wrong(tiny_base: Path, tmp_path: Path) -> None:
    assert find_base(str(tiny_base)) == tiny_base
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_base(str(tmp_path))
    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer"):
        load_renderer(str(broken))


def test_a_loaded_base_is_frozen_and_in_evaluation_mode(tiny_family: Callable[[str], Path]) -> None:
    for name in ("llama", "gemma2"):
        model: Any = load_base(str(tiny_family(name)), precision="float32").model
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")
