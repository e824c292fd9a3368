"""What a training goes down on: an objective turns the losses of a batch's labels into one loss and its figures.

Not here: the labels' losses themselves (nll), when it is asked (loop), where the reference comes from (reference).
Axes: N labels of a trie, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tunesmith.errors import RunError
from tunesmith.train.rows import Row, label_weight
from tunesmith.trie import Trie

TIE = 1e-4  # a margin that is nearer to 0 is float error, and neither answer's
FIGURES = ("margin", "pair_accuracy", "ranking_accuracy", "chosen_change", "rejected_change")


@dataclass(frozen=True, slots=True)
class Measured:
    """The mean loss of some rows, and what else the objective says of them."""

    loss: float
    figures: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """Sums over a piece of a batch, divided by `size` of the whole batch, so that pieces do not change the result."""

    def size(self, batch: Sequence[Row]) -> float:
        """What the sums over a batch are divided by."""
        ...

    def sums(
        self, piece: Sequence[Row], *, trie: Trie, nll_N: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        """The loss of a piece, differentiable in `nll_N`, and the figures; both summed over its rows."""
        ...

    def of_tokens(self, right: int, labels: int) -> dict[str, float]:
        """The figure of so many labels of which so many were right: than which the model found no token likelier."""
        ...

    def by_example(self, piece: Sequence[Row], *, owners_N: torch.Tensor, nll_N: torch.Tensor) -> Iterator[Any]:
        """A line for each row of a piece: its line in the data file, or its place where none is known, and its loss."""
        ...

    def tolerance(self, dtype: str) -> float:
        """How far two computations of the same mean loss may lie apart, on a base in this precision."""
        ...

    def check_start(self, loss: float, *, dtype: str) -> None:
        """Raises RunError when this cannot be the loss before the first step."""
        ...


def objective_of(method: str, *, beta: float | None) -> Objective:
    return Preference(beta) if method == "dpo" and beta is not None else Likelihood()


class Likelihood:
    """Supervised training: the mean negative log-likelihood (nats) of the labels, weighted by their rows."""

    def size(self, batch: Sequence[Row]) -> float:
        return label_weight(batch)

    def sums(
        self, piece: Sequence[Row], *, trie: Trie, nll_N: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        return (nll_N * trie.weights_N.to(nll_N.device)).sum(), {}

    def of_tokens(self, right: int, labels: int) -> dict[str, float]:
        return {"token_accuracy": right / labels}

    def by_example(self, piece: Sequence[Row], *, owners_N: torch.Tensor, nll_N: torch.Tensor) -> Iterator[Any]:
        """The loss is the mean over the row's labels, weights left out."""
        owners_N = owners_N.cpu()
        sums = torch.zeros(len(piece)).index_add_(0, owners_N, nll_N.cpu())
        counts = torch.bincount(owners_N, minlength=len(piece))
        for row, total, count in zip(piece, sums.tolist(), counts.tolist(), strict=True):
            yield {"row": row.index if row.line is None else row.line, "loss": total / count, "labels": count}

    def tolerance(self, dtype: str) -> float:
        return 1e-4 if dtype == "float32" else 5e-2

    def check_start(self, loss: float, *, dtype: str) -> None:
        return


@dataclass(frozen=True, slots=True)
class Preference:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    The loss of a pair is -log sigmoid(margin), with margin = beta * (change of the preferred answer's log-probability -
    change of the rejected one's). A log-probability is the sum over the answer's tokens, its end of turn among them; a
    change is counted from the reference. Figures are means over pairs, weighted as the pairs are:
    `margin`; `pair_accuracy`, the share of pairs with a margin above 0 (a tie is half); `ranking_accuracy`, the share
    whose preferred answer is the more likely one, whatever the reference says; `chosen_change` and `rejected_change`,
    in nats an answer.
    """

    beta: float

    def size(self, batch: Sequence[Row]) -> float:
        return sum(row.weight for row in batch)

    def sums(
        self, piece: Sequence[Row], *, trie: Trie, nll_N: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        logp_P2, change_P2, margin_P = self._compare(piece, owners_N=trie.owners_N, nll_N=nll_N)
        weight_P = margin_P.new_tensor([row.weight for row in piece])
        loss = -(weight_P * torch.nn.functional.logsigmoid(margin_P)).sum()
        with torch.no_grad():
            better_P = (margin_P > TIE) + 0.5 * (margin_P.abs() <= TIE)
            likelier_P = (logp_P2[:, 0] > logp_P2[:, 1]).to(margin_P)
            columns = (margin_P, better_P, likelier_P, change_P2[:, 0], change_P2[:, 1])
            totals = torch.stack([(weight_P * column_P).sum() for column_P in columns]).tolist()
        return loss, dict(zip(FIGURES, totals, strict=True))

    def of_tokens(self, right: int, labels: int) -> dict[str, float]:
        """None: half of the labels are of answers that are to become unlikely."""
        return {}

    def by_example(self, piece: Sequence[Row], *, owners_N: torch.Tensor, nll_N: torch.Tensor) -> Iterator[Any]:
        _, change_P2, margin_P = self._compare(piece, owners_N=owners_N, nll_N=nll_N)
        losses = (-torch.nn.functional.logsigmoid(margin_P)).tolist()
        for row, loss, margin, change in zip(piece, losses, margin_P.tolist(), change_P2.tolist(), strict=True):
            labels = sum(sequence.num_trained for sequence in row.sequences)
            figures = {"margin": margin, "chosen_change": change[0], "rejected_change": change[1]}
            yield {"row": row.index if row.line is None else row.line, "loss": loss, "labels": labels, **figures}

    def tolerance(self, dtype: str) -> float:
        return (1e-4 if dtype == "float32" else 2e-2) * max(1.0, self.beta / 0.1)

    def check_start(self, loss: float, *, dtype: str) -> None:
        """Before the first step the model is the reference, every margin is 0 and the loss log 2."""
        if not abs(loss - math.log(2)) <= self.tolerance(dtype):
            raise RunError(
                f"Before the first step the loss is {loss:.6f} and not log 2 = {math.log(2):.6f}: the reference's "
                "log-probabilities are not this model's.",
                "Choose another --out to train anew; if it happens again, please report it.",
            )

    def _compare(
        self, piece: Sequence[Row], *, owners_N: torch.Tensor, nll_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities (P, 2) of both answers, their changes from the reference (P, 2), the margins (P)."""
        logp_P2 = answer_logp_P2(owners_N, nll_N, num_pairs=len(piece))
        change_P2 = logp_P2 - logp_P2.new_tensor([row.reference for row in piece])
        return logp_P2.detach(), change_P2, self.beta * (change_P2[:, 0] - change_P2[:, 1])


def answer_logp_P2(owners_N: torch.Tensor, nll_N: torch.Tensor, *, num_pairs: int) -> torch.Tensor:
    """The log-probability (nats, float64) of the preferred and the rejected answer of each pair: of a long answer it is
    thousands of nats, of which a margin is tenths. Labels lie in the order of their sequences, laid out two by two."""
    counts = torch.bincount(owners_N.cpu(), minlength=2 * num_pairs).tolist()
    return -torch.stack([part_N.double().sum() for part_N in nll_N.split(counts)]).view(num_pairs, 2)
