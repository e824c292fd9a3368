"""Before step 1: do the loop's loss and gradients equal the model's own, row by row? Does the model know the tokens?

Not here: what a row must be (rows), the layout itself (trie). Called once by train.run; the answer is printed and kept.
Axes: B = 1 row, T tokens, N labels, V vocabulary, C hidden size.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.errors import ModelError, RunError
from tunesmith.model import Base
from tunesmith.nll import label_nll_N
from tunesmith.render import Rendered
from tunesmith.train.rows import Row
from tunesmith.trie import Trie, lay_out

NUM_ROWS = 3  # enough to share a prefix, to branch from it, and to have a row between two others
MAX_TOKENS = 1024  # of these rows together: the check takes no more memory than a step
SAME = 0.01  # of the usual distance of an embedding from their mean: closer ones were never told apart


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two computations of the same rows lie apart: relative for the loss and the gradient vector (its norm);
    `leak_nats` is what a row's losses move by when another row changes."""

    loss: float
    gradient: float
    leak_nats: float

    def within(self, limit: Distance) -> bool:
        return self.loss <= limit.loss and self.gradient <= limit.gradient and self.leak_nats <= limit.leak_nats

    def __str__(self) -> str:
        return (
            f"relative difference of the loss {self.loss:.1e}, of the gradients {self.gradient:.1e}; "
            f"a changed row moves the others by {self.leak_nats:.1e} nats"
        )


LIMITS = {torch.float32: Distance(1e-4, 1e-4, 1e-5)}
LOW_PRECISION_LIMIT = Distance(2e-2, 2e-1, 1e-3)


def check_layout(model: Any, rows: Sequence[Row]) -> tuple[bool, str]:
    """Hold a few rows in one micro-batch, as the loop computes them, against the stock computation of one at a time.

    Returns (share, words): whether prefixes are shared, or only packed, and what was measured.
    Raises RunError when even packing differs: what would be trained is not what the rows say.
    """
    few = _few(rows)
    limit = LIMITS.get(model.dtype, LOW_PRECISION_LIMIT)
    model.eval()  # no dropout
    with _awake(model):
        stock = _loss_and_gradients(model, ((plain_nll_N(model, row.rendered) * row.weight).sum() for row in few))
        if not math.isfinite(stock[0]):
            raise RunError(
                f"The base's own loss on these rows is {stock[0]}.", "Its weights are damaged: get it again."
            )
        shared = _distance(model, few, stock=stock, share=True)
        if shared.within(limit):
            return True, f"sharing prefixes gives the plain result ({shared})"
        packed = _distance(model, few, stock=stock, share=False)
    if packed.within(limit):
        return False, f"sharing prefixes is off: on this model it changes the result ({shared}); packing does not"
    raise RunError(
        f"Rows laid out side by side do not give what this model gives for each alone ({packed}).",
        "Its attention cannot be isolated, or its layers are of a kind not known here; please report the model's type.",
    )


def plain_nll_N(model: Any, rendered: Rendered) -> torch.Tensor:
    """Negative log-likelihood (nats) of a row's labels by nothing but the model's own forward and torch.

    From the logits on in float64: torch's float32 log-softmax over a large vocabulary has errors of its own, which with
    SmolLM2's 49,152 tokens move the gradient by 1e-5 to 1e-4 of its length (2.13.0, processor).
    """
    ids_BT = torch.tensor([rendered.ids], device=model.device)
    logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0, :-1]
    is_label_T = torch.tensor(rendered.trained[1:], device=model.device)
    logits_NV, labels_N = logits_TV[is_label_T].double(), ids_BT[0, 1:][is_label_T]
    return torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")


def check_vocabulary(base: Base, rows: Sequence[Row], *, embeddings_train: bool) -> None:
    """Every token of the rows has an embedding, and one that was trained.

    Raises ModelError naming the token: an id beyond the embeddings, or, where the embeddings stay as they are, an added
    token whose embedding is the mean of all or that of another token, as resizing and pre-training leave unused ones.
    """
    matrices = [base.model.get_input_embeddings().weight, base.model.get_output_embeddings().weight]
    known = min(len(matrix_VC) for matrix_VC in matrices)
    used = sorted({token for row in rows for token in row.rendered.ids})
    if used[-1] >= known:
        raise ModelError(
            f"The tokenizer of {base.name} writes token {used[-1]}, but the model has {known} tokens.",
            "Its tokenizer and its weights do not belong together: get the base again.",
        )
    added = base.renderer.tokenizer.added_tokens_decoder
    for token in () if embeddings_train else (token for token in used if token in added):
        if any(_is_untrained(matrix_VC, token) for matrix_VC in matrices if matrix_VC.is_floating_point()):
            raise ModelError(
                f"{base.name} was never trained on its token {token} ({added[token].content!r}), and an adapter does "
                "not change embeddings: it could not learn to read or write it.",
                "Use the instruction-tuned version of this base.",
            )


@torch.inference_mode()
def _is_untrained(matrix_VC: torch.Tensor, token: int) -> bool:
    few_VC = matrix_VC[:: max(1, len(matrix_VC) // 4096)].float()
    mean_C = few_VC.mean(0)
    usual = (few_VC - mean_C).norm(dim=1).median()
    row_C = matrix_VC[token].float()
    near = float((row_C - mean_C).norm())
    for start in range(0, len(matrix_VC), 4096):  # in parts: a large vocabulary in float32 takes gigabytes
        distance_V = (matrix_VC[start : start + 4096].float() - row_C).norm(dim=1)
        if start <= token < start + 4096:
            distance_V[token - start] = torch.inf
        near = min(near, float(distance_V.min()))
    return near < SAME * usual


def _few(rows: Sequence[Row]) -> list[Row]:
    """The longest of the first rows that together fit MAX_TOKENS, or else the shortest ones, in their order."""
    first = sorted(rows[:64], key=lambda row: row.num_tokens)
    fitting = [row for row in first if row.num_tokens <= MAX_TOKENS // NUM_ROWS]
    chosen = fitting[-NUM_ROWS:] if len(fitting) > 1 else first[:NUM_ROWS]
    return sorted(chosen, key=lambda row: row.index)


@contextlib.contextmanager
def _awake(model: Any) -> Iterator[None]:
    """While open, the adapter's B is not 0: with B = 0 the adapter's output and the gradients of A are 0 too, and would
    equal anything. Draws from a generator of its own."""
    sleeping = {name: x for name, x in model.named_parameters() if x.requires_grad and "lora_B" in name}
    before = {name: x.detach().clone() for name, x in sleeping.items()}
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in sleeping.values():
            x.add_(0.02 * torch.randn(x.shape, generator=random).to(x))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, x in sleeping.items():
                x.copy_(before[name])


def _distance(model: Any, few: Sequence[Row], *, stock: tuple[float, list[torch.Tensor]], share: bool) -> Distance:
    trie = lay_out([row.rendered for row in few], [row.weight for row in few], share=share)
    nll_N = label_nll_N(model, trie)
    loss, gradients = _loss_and_gradients(model, [(nll_N * trie.weights_N).sum()])
    stock_loss, stock_gradients = stock
    apart = _norm([x - y for x, y in zip(gradients, stock_gradients, strict=True)])
    return Distance(
        loss=abs(loss - stock_loss) / max(abs(stock_loss), 1e-12),
        gradient=apart / max(_norm(stock_gradients), 1e-12),
        leak_nats=_leak_nats(model, few, trie=trie, nll_N=nll_N.detach(), share=share),
    )


def _loss_and_gradients(model: Any, losses: Iterable[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """The sum of the losses, and its gradient in each trainable parameter."""
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in trained]
    for parameter in trained:
        parameter.grad = None
    return total, gradients


def _norm(gradients: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([gradient.float().norm().cpu() for gradient in gradients]).norm())


@torch.inference_mode()
def _leak_nats(model: Any, few: Sequence[Row], *, trie: Trie, nll_N: torch.Tensor, share: bool) -> float:
    """The most that a label of the rows in the middle moves when those laid out first and last become others.

    Only tokens that a row has alone are changed, and the first of them stays, so that the layout keeps its shape: on
    the same shape even rounding is the same.
    """
    owners = trie.owners_N[trie.rows_N.argsort(stable=True)].tolist()
    ends = {owners[0]} if len(few) < 3 else {owners[0], owners[-1]}
    vocabulary = model.get_input_embeddings().num_embeddings
    changed = []
    for place, row in enumerate(few):
        ids = row.rendered.ids
        others = (other.rendered.ids for other in few if other is not row)
        alone = 1 + max((_common_prefix(ids, other) for other in others), default=0)
        new = ids[:alone] + tuple((token + 1) % vocabulary for token in ids[alone:])
        changed.append(Rendered(new, row.rendered.trained) if place in ends else row.rendered)
    after_N = label_nll_N(model, lay_out(changed, [1.0] * len(few), share=share))
    moved_N = (after_N - nll_N).abs()[[owner not in ends for owner in trie.owners_N.tolist()]]
    return float(moved_N.max()) if len(moved_N) else 0.0


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
