"""Batched decoding with a key-value cache, and the local contender: a base with or without an adapter.

Not here: templates (render), HTTP (serve). What all prompts share is prefilled once; rows that are done leave the batch.
Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.chat import Message
from tunesmith.contender import Progress, Reply
from tunesmith.errors import InputError
from tunesmith.model import Base


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy. `seed` makes a sampled reply repeat."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(slots=True)
class Generated:
    """Token ids after the prompt, without the stop token, and why generation ended ("stop" or "length")."""

    ids: list[int]
    finish_reason: str
    finished_s: float  # from the start of the batch


GREEDY = Sampling()
BATCH_ROWS = 32


class LocalContender:
    """Answers with a loaded base, or a base with an adapter on it (`model`). Greedy, so a repeat gives the same replies."""

    def __init__(self, name: str, base: Base, model: Any | None = None) -> None:
        self.name = name
        self.base = base
        self.model = base.model if model is None else model

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """Replies in the order of the prompts. Raises InputError when a prompt and its reply do not fit the context."""
        ids = [self.base.renderer.prompt(messages) for messages in prompts]
        self._check_lengths(ids, max_new_tokens)
        replies: list[Reply | None] = [None] * len(ids)
        shared = shared_prefix(ids)
        for rows in _batches(ids):
            batch = [ids[row] for row in rows]
            start = time.perf_counter()
            outputs = self.decode(batch, max_new_tokens=max_new_tokens, shared=shared)
            share_s = (time.perf_counter() - start) / len(rows)
            for row, output in zip(rows, outputs, strict=True):
                replies[row] = self._reply(ids[row], output, share_s)
            if progress:
                progress(len(rows))
        return [reply for reply in replies if reply is not None]

    def decode(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, shared: int = 0) -> list[Generated]:
        return decode(
            self.model, prompts, stop_ids=self.base.renderer.stop_ids, max_new_tokens=max_new_tokens, shared=shared
        )

    def stream(
        self, messages: Sequence[Message], *, max_new_tokens: int, sampling: Sampling = GREEDY
    ) -> Iterator[str | Reply]:
        """One reply as pieces of text, then the whole Reply."""
        ids = self.base.renderer.prompt(messages)
        self._check_lengths([ids], max_new_tokens)
        start = time.perf_counter()
        made: list[int] = []
        sent = ""
        finish = "length"
        for token in decode_one(self.model, ids, max_new_tokens=max_new_tokens, sampling=sampling):
            if token in self.base.renderer.stop_ids:
                finish = "stop"
                break
            made.append(token)
            text = self.base.renderer.decode(made)
            if not text.endswith("\ufffd"):
                yield text[len(sent) :]
                sent = text
        text = self.base.renderer.decode(made)
        if text != sent:
            yield text[len(sent) :]
        yield Reply(text, len(ids), len(made), time.perf_counter() - start, finish)

    def _reply(self, prompt: Sequence[int], output: Generated, share_s: float) -> Reply:
        text = self.base.renderer.decode(output.ids)
        return Reply(text, len(prompt), len(output.ids), share_s, output.finish_reason)

    def _check_lengths(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        limit = self.base.facts.max_positions
        for prompt in prompts:
            if len(prompt) + max_new_tokens > limit:
                raise InputError(
                    f"A prompt of {len(prompt)} tokens and a reply of up to {max_new_tokens} do not fit the {limit} tokens "
                    f"of {self.base.name}.",
                    "Prompts are never trimmed: shorten it, or lower the reply's limit.",
                )


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, at least one token of each left over."""
    first, last = min(prompts), max(prompts)
    length = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        length += 1
    return min(length, min(len(prompt) for prompt in prompts) - 1)


@torch.inference_mode()
def decode(
    model: Any, prompts: Sequence[Sequence[int]], *, stop_ids: frozenset[int], max_new_tokens: int, shared: int = 0
) -> list[Generated]:
    """Greedy decoding of a batch. The first `shared` ids of every prompt are the same and prefilled once.

    Rows are padded on the left, between the shared part and their own, so that all end in the same column; padding is
    masked and positions follow each row, so a row's result does not depend on the others beyond float error.
    """
    start = time.perf_counter()
    cache, mask_BT, logits_BV = _prefill(model, prompts, shared)
    next_position_B = torch.tensor([len(prompt) for prompt in prompts])
    outputs = [Generated([], "length", 0.0) for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch is
    for step in range(max_new_tokens):
        tokens = logits_BV.argmax(-1).tolist()
        going = []
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token in stop_ids:
                outputs[row].finish_reason = "stop"
            else:
                outputs[row].ids.append(token)
            if token in stop_ids or step == max_new_tokens - 1:
                outputs[row].finished_s = time.perf_counter() - start
            else:
                going.append(index)
        if not going:
            break
        if len(going) < len(rows):
            keep = torch.tensor(going)
            cache.batch_select_indices(keep)
            mask_BT, next_position_B = mask_BT[keep], next_position_B[keep]
            rows, tokens = [rows[index] for index in going], [tokens[index] for index in going]
        mask_BT = torch.cat([mask_BT, torch.ones(len(rows), 1, dtype=mask_BT.dtype)], dim=1)
        logits_BV = _forward(model, torch.tensor(tokens)[:, None], next_position_B[:, None], mask_BT, cache)
        next_position_B = next_position_B + 1
    return outputs


@torch.inference_mode()
def decode_one(model: Any, prompt: Sequence[int], *, max_new_tokens: int, sampling: Sampling) -> Iterator[int]:
    """Tokens of one reply as they are made, the stop token included when the model makes one; the caller stops there."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    cache, mask_BT, logits_BV = _prefill(model, [prompt], 0)
    for step in range(max_new_tokens):
        token = pick(logits_BV[0], sampling, generator)
        yield token
        mask_BT = torch.cat([mask_BT, torch.ones(1, 1, dtype=mask_BT.dtype)], dim=1)
        position = torch.tensor([[len(prompt) + step]])
        logits_BV = _forward(model, torch.tensor([[token]]), position, mask_BT, cache)


def pick(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id: the best at temperature 0, else drawn from the smallest set of tokens whose probability is top_p."""
    if sampling.temperature <= 0:
        return int(logits_V.argmax())
    probabilities_V, order_V = torch.softmax(logits_V.float() / sampling.temperature, -1).sort(descending=True)
    before_V = probabilities_V.cumsum(-1) - probabilities_V
    probabilities_V = probabilities_V.masked_fill(before_V >= sampling.top_p, 0.0)
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


def _prefill(model: Any, prompts: Sequence[Sequence[int]], shared: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Cache, (B, T) mask of what is real in it, and the logits after each prompt."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    own = [list(prompt[shared:]) for prompt in prompts]
    if shared:
        prefix = torch.tensor([list(prompts[0][:shared])])
        mask = torch.ones(1, shared, dtype=torch.long)
        _forward(model, prefix, torch.arange(shared)[None], mask, cache)
        cache.batch_repeat_interleave(len(prompts))
    width = max(map(len, own))
    ids_BT = torch.zeros(len(own), width, dtype=torch.long)
    mask_BT = torch.zeros(len(own), shared + width, dtype=torch.long)
    mask_BT[:, :shared] = 1
    positions_BT = torch.zeros(len(own), width, dtype=torch.long)
    for row, ids in enumerate(own):
        ids_BT[row, width - len(ids) :] = torch.tensor(ids)
        mask_BT[row, shared + width - len(ids) :] = 1
        positions_BT[row, width - len(ids) :] = torch.arange(shared, shared + len(ids))
    return cache, mask_BT, _forward(model, ids_BT, positions_BT, mask_BT, cache)


def _forward(
    model: Any, ids_BT: torch.Tensor, positions_BT: torch.Tensor, mask_BT: torch.Tensor, cache: Any
) -> torch.Tensor:
    """Logits (B, V) of the last column; the cache grows by the columns of `ids_BT`."""
    output = model(
        input_ids=ids_BT,
        position_ids=positions_BT,
        attention_mask=mask_BT,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, so that little is padding."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for start in range(0, len(order), BATCH_ROWS):
        yield order[start : start + BATCH_ROWS]
