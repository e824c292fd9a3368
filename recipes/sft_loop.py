"""A supervised fine-tune with LoRA in one file: plain transformers and PEFT, nothing of tunesmith.

Read it top to bottom. `tunesmith train` does the same arithmetic (a test holds both to the same losses) and adds what a
loop needs in earnest: shared prefixes, checkpoints, early stopping, checks before, during and after.

    python recipes/sft_loop.py --data train.jsonl --base FOLDER --out adapter
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

RANK = 16
ALPHA = 32.0  # twice the rank
BATCH_ROWS = 16
WARMUP_STEPS = 5
MAX_GRAD_NORM = 1.0
IGNORED = -100  # a label that cross_entropy leaves out


def read_rows(path: str) -> list[list[dict[str, str]]]:
    """The conversations of a JSONL file with `messages` on each line."""
    return [json.loads(line)["messages"] for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def tokenise(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation that ends with the answer to learn: the answer and its end-of-turn token.

    The prompt is the conversation opened for the answer; what the whole has beyond it is trained. That holds only for
    templates that keep a prefix as it is, so it is checked.
    """
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole.startswith(prompt), "this template rewrites the prompt once the answer is there"
    answer = whole[len(prompt) :].rstrip()  # what stands after the end-of-turn token teaches nothing
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = tokenizer.encode(answer, add_special_tokens=False)
    return prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids


def pad(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and labels (B, T), padded on the right to the longest row."""
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    labels_BT = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows])
    return ids_BT, mask_BT, labels_BT


def mean_nll(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Sum of the negative log-likelihoods of all labels of the batch, divided by their number.

    A mean over rows of each row's own mean would give short answers more weight a token; see
    transformers pull request 34191 for how that went wrong in practice.
    """
    ids_BT, mask_BT, labels_BT = pad(rows)
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    next_labels_BT = labels_BT[:, 1:]  # token t predicts token t + 1
    total = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), next_labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (next_labels_BT != IGNORED).sum()


def learning_rate_at(step: int, *, peak: float, num_steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0; steps count from 1."""
    warmup = min(WARMUP_STEPS, num_steps)
    if step <= warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup + 1)))


def main(
    data: str, base: str, *, out: str | None = None, epochs: int = 3, peak: float = 1e-3, seed: int = 0
) -> list[float]:
    """Train and save the adapter; returns the loss of every step."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = [tokenise(tokenizer, messages) for messages in read_rows(data)]

    torch.manual_seed(seed)  # the adapter's A matrices are drawn next; its B matrices start at 0
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.0)

    steps_per_epoch = math.ceil(len(rows) / BATCH_ROWS)
    losses: list[float] = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), BATCH_ROWS):
            batch = [rows[place] for place in order[start : start + BATCH_ROWS]]
            loss = mean_nll(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            rate = learning_rate_at(len(losses) + 1, peak=peak, num_steps=epochs * steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            print(f"step {len(losses)}  loss {losses[-1]:.4f}  learning rate {rate:.2e}", flush=True)

    if out:
        model.save_pretrained(out)
        print(f"adapter in {out}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSONL with 'messages'; the last turn is the answer to learn")
    parser.add_argument("--base", required=True, help="folder or Hugging Face name of the base model")
    parser.add_argument("--out", help="where to save the adapter")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--peak", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(
        arguments.data,
        arguments.base,
        out=arguments.out,
        epochs=arguments.epochs,
        peak=arguments.peak,
        seed=arguments.seed,
    )
