"""A base with random weights in the shape of Llama-3.1-8B (16 GB) and the tokenizer of another folder.

    python random_llama.py TOKENIZER_FOLDER NEW_FOLDER

Speed does not depend on what the weights say. Run by benchmarks/train_speed.py --gpu.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main(tokenizer: Path, folder: Path) -> None:
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, bos_token_id=1, eos_token_id=2, pad_token_id=2))
    model.save_pretrained(folder)
    for file in (*tokenizer.glob("tokenizer*"), *tokenizer.glob("*.jinja")):
        shutil.copy(file, folder / file.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
