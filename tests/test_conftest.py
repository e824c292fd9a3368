"""The tiny models and rows that the other tests trust: that they load, answer, and are the same each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEFAULT_SYSTEM, FAMILIES
from tunesmith.chat import parse_row


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_loads_from_its_folder_and_answers(name: str, tiny_family: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_family(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    messages = [{"role": "user", "content": "Grüße"}]
    inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits_BTV = model(**inputs).logits
    assert logits_BTV.shape[-1] == len(tokenizer) == 259
    assert torch.isfinite(logits_BTV).all()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert (folder / "model.safetensors").exists()


def test_the_tokenizer_reads_bytes_and_the_template_puts_a_system_turn_in(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    text = "  Grüße 👋\n<|im_end|> x  y"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode()) - len("<|im_end|>") + 1
    messages = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    opening = f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"
    assert chat == opening + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_rows_are_distinct_parse_and_fit_the_tiny_model(
    tiny_rows: Callable[[int], list[dict[str, Any]]], tiny_file: Path
) -> None:
    rows = tiny_rows(60)
    assert [json.loads(line) for line in tiny_file.read_text(encoding="utf-8").splitlines()] == rows
    examples = [parse_row(row)[0] for row in rows]
    assert len({example.id for example in examples if example}) == 60
    assert all(len(json.dumps(row)) < 512 for row in rows)
