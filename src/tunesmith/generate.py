"""Batched decoding with a key-value cache, and the local contenders: a base with or without an adapter.

Not here: templates (render), HTTP (serve), feeding prompts to the model (prefill), attention to what all prompts share
(prefix), rows that join while others run (running). Rows that are done leave the batch a few at a time. Axes: B rows,
T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.adapter import detach, find_tuned, load_adapter
from tunesmith.chat import Example, Message, label_set
from tunesmith.contender import Contender, Done, Parts, Progress, Reply, collect, innermost
from tunesmith.errors import InputError
from tunesmith.facts import file_sha256, weights_sha256
from tunesmith.model import Base, load_base
from tunesmith.prefill import prefill
from tunesmith.prefix import Prefix, can_share, shared_prefix_of
from tunesmith.specs import parse_spec, put_layers, remote_contender


@dataclass(slots=True)
class Generated:
    """Token ids after the prompt, without the stop token, and why generation ended ("stop" or "length")."""

    ids: list[int]
    finish_reason: str


Say = Callable[[str], None]

BATCH_ROWS = 160  # 32, 64 and 100 at once are slower on a processor, as measured; so is 300
FULL = 0.9  # rows that are done leave when fewer of the batch than this go on: leaving copies the cache
BATCH_TOKENS = 16384  # in the cache of a batch: bounds its memory when prompts are long


class LocalContender:
    """Answers with a loaded base, or a base with an adapter on it (`model`); greedy, so a repeat gives the same."""

    batched = True

    def __init__(self, name: str, base: Base, model: Any | None = None) -> None:
        self.name = name
        self.base = base
        self.model = base.model if model is None else model

    @property
    def identity(self) -> str | None:
        """None where it answers with other weights than those of the base's files: trained, or an adapter put on."""
        others = self.base.trained_in_place or hasattr(self.base.model, "peft_config")
        return _identity(self.base) if self.model is self.base.model and not others else None

    def room(self, messages: Sequence[Message]) -> int:
        """How many tokens of the context a prompt leaves."""
        return self.base.facts.max_positions - len(self.base.renderer.prompt(messages))

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """Replies in the order of the prompts. Raises InputError when a prompt and its reply do not fit the context."""
        return collect(self.answer_each, prompts, max_new_tokens=max_new_tokens, progress=progress)

    def answer_each(self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, done: Done) -> None:
        """As `answer`; `done` is called after each batch. What all rows share is computed once, and its time shared."""
        ids = [self.base.renderer.prompt(messages) for messages in prompts]
        self._check_lengths(ids, max_new_tokens)
        if not ids:
            return
        shared = shared_prefix(ids) if can_share(self.model) else 0
        start = time.perf_counter()
        with torch.inference_mode(), shared_prefix_of(self.model, ids[0][:shared]) as prefix:
            prefix_s = (time.perf_counter() - start) / len(ids)
            for rows in _batches(ids, own_tokens=max_new_tokens - shared):
                start = time.perf_counter()
                outputs = self._decode([ids[row] for row in rows], max_new_tokens=max_new_tokens, prefix=prefix)
                share_s = prefix_s + (time.perf_counter() - start) / len(rows)
                for row, output in zip(rows, outputs, strict=True):
                    done(row, self._reply(ids[row], output, share_s))

    @torch.inference_mode()
    def logprobs(self, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
        """Of each token of the vocabulary (T + 1, V): at each of a reply's T tokens, and after the last."""
        ids_BT = torch.tensor([[*prompt, *reply]], device=self.model.device)
        logits_TV: torch.Tensor = self.model(input_ids=ids_BT).logits[0, len(prompt) - 1 :]
        return logits_TV.float().log_softmax(-1).cpu()

    def _decode(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, prefix: Prefix | None
    ) -> list[Generated]:
        stop_ids = self.base.renderer.stop_ids
        return decode(self.model, prompts, stop_ids=stop_ids, max_new_tokens=max_new_tokens, prefix=prefix)

    def _reply(self, prompt: Sequence[int], output: Generated, share_s: float) -> Reply:
        text = self.base.renderer.decode(output.ids)
        return Reply(text, len(prompt), len(output.ids), share_s, output.finish_reason)

    def _check_lengths(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        limit = self.base.facts.max_positions
        for prompt in prompts:
            if len(prompt) + max_new_tokens > limit:
                raise InputError(
                    f"A prompt of {len(prompt)} tokens and a reply of up to {max_new_tokens} do not fit "
                    f"the {limit} tokens of {self.base.name}.",
                    "Prompts are never trimmed: shorten it, or lower the reply's limit.",
                )


class AdapterContender:
    """An adapter on a loaded base. It is put on for the time of an `answer` and taken off again, so that several
    contenders can share the base."""

    batched = True

    def __init__(self, name: str, base: Base, adapter: Path) -> None:
        self.name = name
        self.base = base
        self.adapter = adapter

    @property
    def identity(self) -> str | None:
        """Of the adapter's weights and how they are applied, and of the base."""
        applied = file_sha256(self.adapter / "adapter_config.json")
        return f"{_identity(self.base)} adapter {weights_sha256(self.adapter)} {applied}"

    def room(self, messages: Sequence[Message]) -> int:
        return LocalContender(self.name, self.base).room(messages)

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """As LocalContender.answer; ModelError when the adapter does not belong on this base."""
        return collect(self.answer_each, prompts, max_new_tokens=max_new_tokens, progress=progress)

    def answer_each(self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, done: Done) -> None:
        model = load_adapter(self.base, self.adapter)
        try:
            LocalContender(self.name, self.base, model).answer_each(prompts, max_new_tokens=max_new_tokens, done=done)
        finally:
            detach(model)


def _identity(base: Base) -> str:
    """All that greedy replies of a base depend on beside the prompt."""
    weights = base.model.get_input_embeddings().weight
    held = f"{weights.dtype} {weights.device.type}{' in 4 bits' if base.quantized else ''}"
    stops = sorted(base.renderer.stop_ids)
    return f"base {base.sha256} template {base.renderer.template_sha256} stops {stops} held {held} greedy"


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, at least one token of each left over."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    length = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        length += 1
    return min(length, min(len(prompt) for prompt in prompts) - 1)


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    prefix: Prefix | None = None,
) -> list[Generated]:
    """Greedy decoding of a batch. `prefix`: what all prompts begin with, computed before (`shared_prefix_of`).

    The rest of each prompt is padded on the left, so that all end in the same column; padding is masked and positions
    follow each row, so a row's result does not depend on the others beyond float error.
    """
    outputs = [Generated([], "length") for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch is
    next_position_B = torch.tensor([len(prompt) for prompt in prompts])
    state = prefill(model, prompts, prefix=prefix)
    for step in range(max_new_tokens):
        tokens = state.logits_BV.argmax(-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            if outputs[row].finish_reason == "stop":
                continue  # still in the batch, to no end
            if token in stop_ids:
                outputs[row].finish_reason = "stop"
            else:
                outputs[row].ids.append(token)
        going = [index for index, row in enumerate(rows) if outputs[row].finish_reason != "stop"]
        if not going or step == max_new_tokens - 1:
            break
        if len(going) < FULL * len(rows):
            state.keep(going)
            next_position_B = next_position_B[going]
            rows, tokens = [rows[index] for index in going], [tokens[index] for index in going]
        state.advance(torch.tensor(tokens)[:, None], next_position_B[:, None])
        next_position_B = next_position_B + 1
    return outputs


def _batches(prompts: Sequence[Sequence[int]], *, own_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, so that little is padding. A row takes as many tokens of
    the cache as the longest prompt of its batch, and `own_tokens`."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    while order:
        most = max(1, min(BATCH_ROWS, BATCH_TOKENS // (len(prompts[order[0]]) + own_tokens)))
        size = -(-len(order) // -(-len(order) // most))  # 130 rows are two batches of 65, not one of 128 and one of 2
        yield order[:size]
        order = order[size:]


class Builder:
    """Makes contenders of their lines (specs); those on the same base share it in memory."""

    def __init__(self, parts: Parts | None = None, *, precision: str = "auto", say: Say = lambda text: None) -> None:
        self.parts = parts or Parts()
        self.precision = precision
        self.say = say
        self._bases: dict[tuple[str, bool], Base] = {}

    def build(self, line: str) -> Contender:
        """Raises InputError for a line that cannot be read or names nothing, ModelError for what cannot be loaded.
        An adapter is put on its base and taken off again, so that it is known to fit before any is asked."""
        spec = parse_spec(line)
        if spec.kind == "url":
            model: Contender = remote_contender(spec)
        elif spec.kind == "base":
            model = LocalContender(line, self.base_named(spec.target))
        else:
            model = self._tuned(line, Path(spec.target))
        model.name = line
        return put_layers(model, spec, name=line, parts=self.parts)

    def build_all(self, lines: Sequence[str]) -> list[Contender]:
        """All lines are read before a model is loaded."""
        for line in lines:
            parse_spec(line)
        return [self.build(line) for line in lines]

    def base_named(self, name: str, quantize: bool = False) -> Base:
        if (name, quantize) not in self._bases:
            base = load_base(name, precision=self.precision, quantize=quantize, say=self.say)
            self._bases[name, quantize] = base
        return self._bases[name, quantize]

    def _tuned(self, line: str, folder: Path) -> Contender:
        tuned = find_tuned(folder)
        base = self.base_named(tuned.base, tuned.quantized)
        if not tuned.adapter:
            return LocalContender(line, base)
        detach(load_adapter(base, tuned.adapter))
        return AdapterContender(line, base, tuned.adapter)


def build_contenders(
    specs: Sequence[str], *, precision: str = "auto", parts: Parts | None = None, say: Say = lambda text: None
) -> list[Contender]:
    """Contenders from a line each, as `Builder.build` makes them."""
    return Builder(parts, precision=precision, say=say).build_all(specs)


def reply_limit(examples: Sequence[Example], contenders: Sequence[Contender]) -> int:
    """Tokens a reply may take: 8 and a quarter more than the longest expected answer, 4 more than the longest label.

    Without a local contender's tokenizer, a token is counted as 4 bytes.
    """
    answers = {example.answer for example in examples}
    for contender in contenders:
        inner = innermost(contender)
        if isinstance(inner, LocalContender | AdapterContender):
            longest = max(inner.base.renderer.count_tokens(answer) for answer in answers)
            break
    else:
        longest = max(len(answer.encode()) for answer in answers) // 4
    return longest + (4 if label_set(examples) else 8 + longest // 4)
