"""The tokenizer of a base in its GGUF file: tokens, merges, how text is split, special tokens and the chat template.

Not here: weights (export.gguf). It is for those who use the file elsewhere: our server sends token ids and reads them,
from a file with bare ids, so that no other tokenizer or template shapes its answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

TODO = "Use --engine torch."


def add_tokenizer(writer: Any, path: Path, *, size: int) -> None:
    """Write what tokenizer.json says, for a model of `size` tokens. Raises ModelError for another kind than byte-level
    BPE, and for a way of splitting text that llama.cpp has no name for."""
    import gguf

    try:
        tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / 'tokenizer.json'} cannot be read: {error}.", TODO) from error
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelError(f"The tokenizer of {path} is no byte-level BPE, which GGUF files are made of here.", TODO)
    tokens = {number: text for text, number in model["vocab"].items()}
    types = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in tokenizer.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(tokenizer, path))
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([types.get(number, gguf.TokenType.UNUSED) for number in range(size)])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if merges:
        writer.add_token_merges(merges)
    _add_special(writer, path, {text: number for number, text in tokens.items()})


def add_bare_ids(writer: Any, stop_id: int, *, size: int) -> None:
    """Each token's text is its number. llama.cpp's server leaves the ids of tokens that end inside a character out of
    its streams; here none does. `stop_id` ends a reply, no other token does by its text."""
    import gguf

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"({number})" for number in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_scores([0.0] * size)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(stop_id)
    writer.add_add_bos_token(False)


def _splitting(tokenizer: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for how text is cut before its pieces are merged."""
    before = tokenizer.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and not steps[1].get("add_prefix_space"):
        return "smollm"
    raise ModelError(f"The tokenizer of {path} splits text in a way that has no name in GGUF here: {kinds}.", TODO)


def _add_special(writer: Any, path: Path, ids: dict[str, int]) -> None:
    config = path / "tokenizer_config.json"
    named: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    adders = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "unk_token": writer.add_unk_token_id,
        "pad_token": writer.add_pad_token_id,
    }
    for name, add in adders.items():
        token = named.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            add(ids[text])
    writer.add_add_bos_token(False)  # the template writes it, where it has one
    template = path / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else named.get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)
