"""The negative log-likelihood of a trie's labels: the one forward that training, validation and proofs use.

Not here: the layout (trie), what is done with the loss (train). Logits are computed only where a label is, a chunk at a
time, so memory does not grow with tokens x vocabulary; the last layer computes only the rows that labels need.
Axes: T tokens, N labels, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from tunesmith.attention import attending_over
from tunesmith.fused import fused, recomputed
from tunesmith.products import linear, linear_input_gradient
from tunesmith.render import Rendered
from tunesmith.trie import Trie, lay_out

BATCH_TOKENS = 4096  # of sequences whose likelihood is asked, before sharing
CHUNK_LOGITS = 1 << 23  # logits held at once: 32 MB in float32


def label_nll_N(model: Any, trie: Trie, *, recompute: bool = False) -> torch.Tensor:
    """Negative log-likelihood (nats, float32) of every label, differentiable in the model's trainable parameters.

    With `recompute` the backward pass computes each layer's inside again instead of keeping it (Chen et al. 2016).
    """
    return label_scores_N(model, trie, recompute=recompute)[0]


def label_scores_N(model: Any, trie: Trie, *, recompute: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and whether each label is what the model would have chosen: no other token was likelier."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    trie = trie.to(causal.device)
    hidden_NC = hidden_at_labels(causal, trie, recompute=recompute)
    head = causal.get_output_embeddings()
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None) or 0.0
    if not _is_plain_frozen(head):
        logits_NV = _capped(head(hidden_NC).float(), cap)
        right_N = logits_NV.detach().gather(1, trie.labels_N[:, None])[:, 0] >= logits_NV.detach().amax(-1)
        return torch.nn.functional.cross_entropy(logits_NV, trie.labels_N, reduction="none"), right_N
    nll_N, right_N = _HeadNll.apply(hidden_NC, head.weight, head.bias, trie.labels_N, cap)
    return nll_N, right_N


@torch.inference_mode()
def sequence_nats(model: Any, sequences: Sequence[Rendered]) -> list[float]:
    """-log p of each sequence's trained tokens together, in nats; neighbours that open alike share that computation."""
    nats: list[float] = []
    start = 0
    while start < len(sequences):
        stop, tokens = start + 1, len(sequences[start].ids)
        while stop < len(sequences) and (tokens := tokens + len(sequences[stop].ids)) <= BATCH_TOKENS:
            stop += 1
        trie = lay_out(sequences[start:stop], [1.0] * (stop - start))
        sums = torch.zeros(stop - start, dtype=torch.double)
        nats += sums.index_add_(0, trie.owners_N, label_nll_N(model, trie).double().cpu()).tolist()
        start = stop
    return nats


def hidden_at_labels(causal: Any, trie: Trie, *, recompute: bool = False, cache: Any = None) -> torch.Tensor:
    """The last hidden states (N, C) from which a trie's labels are predicted. A transformers `cache`, when given, takes
    up the keys and values of every token laid out; whose tokens they are, `Trie.path` says."""
    decoder = causal.get_decoder()
    forms = partial(_trie_forms, causal, trie)
    with forms() as keywords, recomputed(decoder.layers, forms) if recompute else nullcontext():
        output = decoder(input_ids=trie.ids_T[None], use_cache=cache is not None, past_key_values=cache, **keywords)
    hidden_NC: torch.Tensor = output.last_hidden_state[0][trie.rows_N]
    return hidden_NC


def logits_of(causal: Any, hidden_NC: torch.Tensor) -> torch.Tensor:
    """The logits (N, V), in float32, that last hidden states stand for."""
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None) or 0.0
    return _capped(causal.get_output_embeddings()(hidden_NC).float(), cap)


@contextmanager
def _trie_forms(causal: Any, trie: Trie) -> Iterator[dict[str, Any]]:
    with attending_over(causal, trie) as keywords, fused(causal, last_rows_N=torch.unique(trie.rows_N)):
        yield keywords


class _HeadNll(torch.autograd.Function):
    """Cross-entropy through a frozen output layer. The gradient of each chunk is taken while its logits are there:
    the gradient of label n is a number times softmax - one-hot, and the number comes with the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        cap: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = ctx.needs_input_grad[0]
        nll_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_NC.device)
        right_N = torch.empty(len(labels_N), dtype=torch.bool, device=hidden_NC.device)
        d_hidden_NC = torch.empty_like(hidden_NC) if wanted else None
        size = max(1, CHUNK_LOGITS // len(weight_VC))
        for start in range(0, len(labels_N), size):
            chunk = slice(start, start + size)
            logits = _capped(linear(hidden_NC[chunk], weight_VC, bias_O=bias_V).float(), cap)
            slope = 1 - (logits / cap) ** 2 if cap and wanted else None
            own, most = logits.gather(1, labels_N[chunk, None])[:, 0], logits.amax(-1)
            exp = logits.sub_(most[:, None]).exp_()
            total = exp.sum(-1)
            nll_N[chunk] = total.log() + most - own
            right_N[chunk] = own >= most
            if d_hidden_NC is not None:  # total times too large until it has C columns to divide, not V
                d_logits = exp.scatter_add_(1, labels_N[chunk, None], -total[:, None])
                if slope is not None:
                    d_logits *= slope
                d_hidden = linear_input_gradient(d_logits.to(weight_VC.dtype), weight_VC)
                d_hidden_NC[chunk] = d_hidden.div_(total[:, None])
        ctx.save_for_backward(d_hidden_NC)
        ctx.mark_non_differentiable(right_N)
        return nll_N, right_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (d_hidden_NC,) = ctx.saved_tensors
        return d_hidden_NC * grads[0][:, None].to(d_hidden_NC.dtype), None, None, None, None


def _capped(logits: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * torch.tanh(logits / cap) if cap else logits


def _is_plain_frozen(head: Any) -> bool:
    return type(head) is torch.nn.Linear and not head.weight.requires_grad
