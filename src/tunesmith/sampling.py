"""Which token comes next: penalties, biases and grammars on the logits, then the best token or a drawn one.

Not here: logits (running, generate), text (serve.reply). Each row draws by itself, so its tokens do not depend on its
neighbours. Axes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from tunesmith.nll import CHUNK_LOGITS, logits_of

FIRST_LOOK = 256  # of the best tokens: nearly always they hold top_p, and no whole vocabulary is sorted


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy. `seed` makes a sampled reply repeat. Penalties count the reply's own tokens, as OpenAI
    describes them; `logit_bias` holds (token, what is added). `top_logprobs` None: no log-probabilities are told."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None

    @property
    def is_argmax(self) -> bool:
        """Nothing but the best token of the model is asked."""
        plain = not (self.presence_penalty or self.frequency_penalty or self.logit_bias)
        return self.temperature <= 0 and plain and self.top_logprobs is None


GREEDY = Sampling()


class Constraint(Protocol):
    """A grammar that the reply must keep to."""

    def allowed(self) -> bytes:
        """One bit for each token that may come next, the lowest bit of each byte first."""
        ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was chosen. Log-probabilities are of the model's own distribution: before temperature, penalties,
    biases and grammars."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Drawing:
    """Chooses the tokens of one reply, one after the other."""

    def __init__(self, sampling: Sampling = GREEDY, *, constraint: Constraint | None = None) -> None:
        self.sampling = sampling
        self.constraint = constraint
        self.counts: Counter[int] = Counter()
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    @property
    def is_argmax(self) -> bool:
        return self.sampling.is_argmax and self.constraint is None

    def draw(self, logits_V: torch.Tensor) -> Token:
        """The next token, which is then counted as part of the reply."""
        logits_V = logits_V.float()
        token = pick(self._adjusted(logits_V), self.sampling, generator=self.generator)
        if self.constraint:
            self.constraint.accept(token)
        self.counts[token] += 1
        return self._told(token, logits_V)

    def _adjusted(self, logits_V: torch.Tensor) -> torch.Tensor:
        sampling = self.sampling
        changes = dict(sampling.logit_bias)
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, count in self.counts.items():
                penalty = sampling.presence_penalty + count * sampling.frequency_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        if changes:
            places_N, added_N = torch.tensor(list(changes)), torch.tensor(list(changes.values()), dtype=torch.float32)
            logits_V = logits_V.index_add(0, places_N, added_N)
        if self.constraint:
            logits_V = logits_V.masked_fill(~_bits(self.constraint.allowed(), len(logits_V)), float("-inf"))
        return logits_V

    def _told(self, token: int, logits_V: torch.Tensor) -> Token:
        wanted = self.sampling.top_logprobs
        if wanted is None:
            return Token(token)
        logprobs_V = torch.log_softmax(logits_V, -1)
        best, ids = logprobs_V.topk(min(wanted, len(logprobs_V)))
        return Token(token, float(logprobs_V[token]), tuple(zip(ids.tolist(), best.tolist(), strict=True)))


@torch.inference_mode()
def text_tokens(model: Any, ids: Sequence[int], *, top: int) -> list[Token]:
    """A text's own tokens, each with its log-probability after those before it and the `top` best in its place; the
    first has none. By the stock forward, the output layer a chunk at a time."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids_T = torch.tensor(list(ids), device=causal.device)
    hidden_TC = causal.get_decoder()(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]
    size = max(1, CHUNK_LOGITS // causal.get_output_embeddings().out_features)
    tokens = [Token(int(ids[0]))]
    for start in range(0, len(ids) - 1, size):
        labels_N = ids_T[start + 1 : start + 1 + size]
        logprobs_NV = torch.log_softmax(logits_of(causal, hidden_TC[start : start + len(labels_N)]), -1)
        own_N = logprobs_NV.gather(1, labels_N[:, None])[:, 0]
        best_NK, ids_NK = logprobs_NV.topk(min(top, logprobs_NV.shape[-1]))
        for token, own, best, others in zip(
            labels_N.tolist(), own_N.tolist(), best_NK.tolist(), ids_NK.tolist(), strict=True
        ):
            tokens.append(Token(token, own, tuple(zip(others, best, strict=True))))
    return tokens


def pick(logits_V: torch.Tensor, sampling: Sampling, *, generator: torch.Generator) -> int:
    """One token id: the best at temperature 0, else drawn from the smallest set whose probability is top_p."""
    if sampling.temperature <= 0:
        return int(logits_V.argmax())
    probabilities_V = torch.softmax(logits_V.float() / sampling.temperature, -1)
    if sampling.top_p >= 1:
        return int(torch.multinomial(probabilities_V, 1, generator=generator))
    best, order = probabilities_V.topk(min(FIRST_LOOK, len(probabilities_V)))
    if float(best.sum()) < sampling.top_p:
        best, order = probabilities_V.sort(descending=True)
    before = best.cumsum(-1) - best
    best = best.masked_fill(before >= sampling.top_p, 0.0)
    return int(order[torch.multinomial(best, 1, generator=generator)])


def _bits(mask: bytes, size: int) -> torch.Tensor:
    """One boolean for each of `size` tokens; those beyond the mask are not allowed."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[:size].astype(bool)
    return torch.from_numpy(np.pad(bits, (0, size - len(bits))))
