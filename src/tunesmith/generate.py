"""Batched decoding with a key-value cache, and the local contenders: a base with or without an adapter.

Not here: templates (render), HTTP (serve), attention to what all prompts share (prefix). Rows that are done leave the
batch a few at a time. Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tunesmith.adapter import detach, find_tuned, load_adapter
from tunesmith.chat import Message
from tunesmith.contender import Contender, Progress, PromptedContender, Reply, parse_url_spec
from tunesmith.errors import InputError
from tunesmith.model import Base, load_base
from tunesmith.nll import hidden_at_labels
from tunesmith.prefix import Prefix, can_share, shared_prefix_of
from tunesmith.render import Rendered
from tunesmith.trie import lay_out


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


Say = Callable[[str], None]

GREEDY = Sampling()
BATCH_ROWS = 128  # 32 and 64 at once are slower on a processor, as measured
FULL = 0.9  # rows that are done leave when fewer of the batch than this go on: leaving copies the cache
BATCH_TOKENS = 16384  # in the cache of a batch: bounds its memory when prompts are long


class LocalContender:
    """Answers with a loaded base, or a base with an adapter on it (`model`); greedy, so a repeat gives the same."""

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
        if not ids:
            return []
        replies: list[Reply | None] = [None] * len(ids)
        shared = shared_prefix(ids) if can_share(self.model) else 0
        with torch.inference_mode(), shared_prefix_of(self.model, ids[0][:shared]) as prefix:
            for rows in _batches(ids, own_tokens=max_new_tokens - shared):
                start = time.perf_counter()
                outputs = self._decode([ids[row] for row in rows], max_new_tokens=max_new_tokens, prefix=prefix)
                share_s = (time.perf_counter() - start) / len(rows)
                for row, output in zip(rows, outputs, strict=True):
                    replies[row] = self._reply(ids[row], output, share_s)
                if progress:
                    progress(len(rows))
        return [reply for reply in replies if reply is not None]

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

    def __init__(self, name: str, base: Base, adapter: Path) -> None:
        self.name = name
        self.base = base
        self.adapter = adapter

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """As LocalContender.answer; ModelError when the adapter does not belong on this base."""
        model = load_adapter(self.base, self.adapter)
        try:
            local = LocalContender(self.name, self.base, model)
            return local.answer(prompts, max_new_tokens=max_new_tokens, progress=progress)
        finally:
            detach(model)


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
    state = _prefill(model, prompts, prefix=prefix)
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


@torch.inference_mode()
def decode_one(model: Any, prompt: Sequence[int], *, max_new_tokens: int, sampling: Sampling) -> Iterator[int]:
    """Tokens of one reply as they are made; the caller stops at a stop token, which is among them."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    state = _prefill(model, [prompt], prefix=None)
    for step in range(max_new_tokens):
        token = pick(state.logits_BV[0], sampling, generator=generator)
        yield token
        if step == max_new_tokens - 1:
            break
        state.advance(torch.tensor([[token]]), torch.tensor([[len(prompt) + step]]))


def pick(logits_V: torch.Tensor, sampling: Sampling, *, generator: torch.Generator) -> int:
    """One token id: the best at temperature 0, else drawn from the smallest set whose probability is top_p."""
    if sampling.temperature <= 0:
        return int(logits_V.argmax())
    probabilities_V, order_V = torch.softmax(logits_V.float() / sampling.temperature, -1).sort(descending=True)
    before_V = probabilities_V.cumsum(-1) - probabilities_V
    probabilities_V = probabilities_V.masked_fill(before_V >= sampling.top_p, 0.0)
    return int(order_V[torch.multinomial(probabilities_V, 1, generator=generator)])


class _RoomyLayer(DynamicLayer):
    """A layer's keys and values with room after them: a step writes its column and copies none of the others."""

    ROOM = 32  # columns

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [new.new_empty(*new.shape[:-2], 0, new.shape[-1]) for new in (key_states, value_states)]
        if end > self.rooms[0].shape[-2]:
            self.rooms = [
                torch.nn.functional.pad(room[..., :length, :], (0, 0, 0, end - length + self.ROOM))
                for room in self.rooms
            ]
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., length:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.get_seq_length()
        self.rooms = [room[indices] for room in self.rooms]
        self.keys, self.values = (room[..., :length, :] for room in self.rooms)


class _State:
    """A batch being decoded: its cache, which of the cache's columns are real (B, T), the logits of the last column."""

    def __init__(self, model: Any, num_rows: int, prefix: Prefix | None) -> None:
        self.model = model
        self.prefix = {"prefix": prefix} if prefix else {}
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        self.mask_BT = torch.zeros(num_rows, 0, dtype=torch.long)
        self.logits_BV = torch.empty(num_rows, 0)

    def advance(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, *, mask_BT: torch.Tensor | None = None) -> None:
        """Feed columns to the model; `mask_BT` says which of them are real (all, when None)."""
        new_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
        self.mask_BT = torch.cat([self.mask_BT, new_BT], dim=1)
        output = self.model(
            input_ids=ids_BT.to(self.model.device),
            position_ids=positions_BT.to(self.model.device),
            attention_mask=self.mask_BT.to(self.model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self.prefix,
        )
        self.logits_BV = output.logits[:, -1].cpu()

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only these rows of the batch."""
        self.cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
        self.mask_BT = self.mask_BT[list(rows)]


def _prefill(model: Any, prompts: Sequence[Sequence[int]], *, prefix: Prefix | None) -> _State:
    """Feed the prompts. What follows the prefix stands in the cache, padded on the left to one width."""
    if can_share(model) and min(map(len, prompts)) > 1:
        return _prefill_as_trie(model, prompts, prefix=prefix)
    width = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    positions_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        ids_BT[row, width - len(ids) :] = torch.tensor(ids)
        mask_BT[row, width - len(ids) :] = 1
        positions_BT[row, width - len(ids) :] = torch.arange(len(ids))
    state = _State(model, len(prompts), prefix)
    state.advance(ids_BT, positions_BT, mask_BT=mask_BT)
    return state


def _prefill_as_trie(model: Any, prompts: Sequence[Sequence[int]], *, prefix: Prefix | None) -> _State:
    """The same without padding, and nothing that prompts share is computed twice: each row takes its own path's keys
    and values. Their last tokens go through the model's own forward, which alone knows what it does to logits."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    start = prefix.num_tokens if prefix else 0
    width = max(map(len, prompts)) - 1 - start
    state = _State(model, len(prompts), prefix)
    state.mask_BT = torch.zeros(len(prompts), width, dtype=torch.long)
    if width:
        all_but_last = [Rendered(tuple(ids), (*[False] * (len(ids) - 1), True)) for ids in prompts]
        trie = lay_out(all_but_last, [1.0] * len(prompts)).to(causal.device)
        cache = DynamicCache(config=causal.config)
        hidden_at_labels(causal, trie, cache=cache)
        tokens_BT = torch.zeros(len(prompts), width, dtype=torch.long, device=causal.device)
        for row, token in enumerate(trie.rows_N.tolist()):
            own = trie.path(token)[start:]
            tokens_BT[row, width - len(own) :] = own
            state.mask_BT[row, width - len(own) :] = 1
        for number, layer in enumerate(cache.layers):
            keys, values = (x[0][:, tokens_BT].transpose(0, 1) for x in (layer.keys, layer.values))
            state.cache.update(keys, values, number)
    last_BT = torch.tensor([[ids[-1]] for ids in prompts])
    state.advance(last_BT, torch.tensor([[len(ids) - 1] for ids in prompts]))
    return state


def _batches(prompts: Sequence[Sequence[int]], *, own_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, so that little is padding. A row takes as many tokens of
    the cache as the longest prompt of its batch, and `own_tokens`."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    while order:
        most = max(1, min(BATCH_ROWS, BATCH_TOKENS // (len(prompts[order[0]]) + own_tokens)))
        size = -(-len(order) // -(-len(order) // most))  # 130 rows are two batches of 65, not one of 128 and one of 2
        yield order[:size]
        order = order[size:]


def build_contenders(specs: Sequence[str], *, precision: str = "auto", say: Say = lambda text: None) -> list[Contender]:
    """Contenders from a line each; those on the same base share it in memory. Adapters are checked before any answers.

    `base:M`, `base:M+prompt:FILE` (the file's text is the system prompt), `adapter:DIR` (a run, an adapter or a trained
    model), `url:http://host:port/v1#model`. Raises InputError for a line that cannot be read.
    """
    bases: dict[tuple[str, bool], Base] = {}

    def base_named(name: str, quantize: bool = False) -> Base:
        if (name, quantize) not in bases:
            bases[name, quantize] = load_base(name, precision=precision, quantize=quantize, say=say)
        return bases[name, quantize]

    return [_build(spec, base_named) for spec in specs]


def _build(spec: str, base_named: Callable[..., Base]) -> Contender:
    kind, _, rest = spec.partition(":")
    if kind == "url":
        return parse_url_spec(spec)
    target, plus, prompt_file = rest.partition("+prompt:")
    contender: Contender
    if kind == "base" and target:
        contender = LocalContender(spec, base_named(target))
    elif kind == "adapter" and target:
        tuned = find_tuned(Path(target))
        base = base_named(tuned.base, tuned.quantized)
        contender = LocalContender(spec, base)
        if tuned.adapter:
            detach(load_adapter(base, tuned.adapter))
            contender = AdapterContender(spec, base, tuned.adapter)
    else:
        known = "base:M, base:M+prompt:FILE, adapter:DIR or url:http://host:port/v1#model"
        raise InputError(f"The contender {spec!r} cannot be read.", f"Write it as {known}.")
    if not plus:
        return contender
    try:
        system = Path(prompt_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The prompt file {prompt_file} cannot be read: {error}.") from error
    return PromptedContender(contender, system, name=spec)


def reply_limit(answers: Sequence[str], contenders: Sequence[Contender]) -> int:
    """Tokens a reply may take: a quarter more than the longest expected answer, and 8.

    Without a local contender's tokenizer, a token is counted as 4 bytes.
    """
    for contender in contenders:
        inner = getattr(contender, "inner", contender)
        if isinstance(inner, LocalContender | AdapterContender):
            longest = max(inner.base.renderer.count_tokens(answer) for answer in answers)
            break
    else:
        longest = max(len(answer.encode()) for answer in answers) // 4
    return longest + longest // 4 + 8
