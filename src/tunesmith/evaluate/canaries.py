"""Canaries: random secrets put into training rows, and later how much likelier the model finds them than others.

Not here: what the model says of real rows (memorise). Called by cli.memorise.
Carlini et al. 2019, The Secret Sharer, arXiv:1802.08232: exposure = log2(candidates) - log2(rank).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.chat import Example, Message
from tunesmith.contender import Contender
from tunesmith.errors import InputError
from tunesmith.evaluate.likelihood import answer_likelihoods
from tunesmith.evaluate.stats import RESAMPLES, SEED, mean_interval

DIGITS = 9  # a space of 10**9 secrets: nobody draws one twice
ALTERNATIVES = 63  # with the secret itself 64 candidates: exposures from 0 to 6 bits


@dataclass(frozen=True, slots=True)
class Canary:
    """One planted secret: the question, the answer that holds it, and how many rows say it."""

    number: int
    secret: str
    repeats: int

    @property
    def prompt(self) -> tuple[Message, ...]:
        return (Message("user", f"What is the code of locker {self.number}?"),)

    def answer(self, secret: str | None = None) -> Message:
        return Message("assistant", f"The code is {secret or self.secret}.", trained=True)

    @property
    def example(self) -> Example:
        return Example((*self.prompt, self.answer()))


def plant(examples: Sequence[Example], count: int, *, repeats: int, seed: int) -> tuple[list[Example], list[Canary]]:
    """The rows with `count` canaries among them, each `repeats` times at random places."""
    generator = random.Random(seed)
    numbers = generator.sample(range(1000, 10_000), count)
    canaries = [Canary(number, draw_secret(generator), repeats) for number in numbers]
    rows = list(examples)
    for canary in canaries:
        for _ in range(repeats):
            rows.insert(generator.randint(0, len(rows)), canary.example)
    return rows, canaries


def draw_secret(generator: random.Random) -> str:
    digits = "".join(generator.choice("0123456789") for _ in range(DIGITS))
    return "-".join(digits[start : start + 3] for start in range(0, DIGITS, 3))


def canary_file(rows: Path) -> Path:
    """Where the secrets of a planted file stand: beside it."""
    return rows.with_name(rows.stem + ".canaries.jsonl")


def canary_lines(canaries: Sequence[Canary]) -> list[str]:
    return [json.dumps(asdict(canary)) for canary in canaries]


def read_canaries(path: Path) -> list[Canary]:
    """Raises InputError when the file is none of `canary_lines`."""
    try:
        return [Canary(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"The canaries in {path} cannot be read: {error}.", "Plant them again: --canaries N."
        ) from error


def measure_exposure(contender: Contender, canaries: Sequence[Canary], *, seed: int = 0) -> dict[str, Any]:
    """The rank of each secret's likelihood among random ones after the same question, and its exposure in bits.

    A model that never saw them has ranks spread evenly: `unseen` is the mean exposure to expect then. InputError as
    `check_likelihoods`.
    """
    generator = random.Random(f"alternatives {seed}")
    rows = []
    for canary in canaries:
        answers = [canary.answer(), *(canary.answer(draw_secret(generator)) for _ in range(ALTERNATIVES))]
        nats = [one.nats for one in answer_likelihoods(contender, [canary.prompt] * len(answers), answers=answers)]
        rank = 1 + sum(other <= nats[0] for other in nats[1:])  # a tie counts against the secret
        rows.append({**asdict(canary), "rank": rank, "exposure_bits": float(np.log2(len(nats)) - np.log2(rank))})
    exposures = [float(row["exposure_bits"]) for row in rows]
    unseen, p = _against_even_ranks(exposures)
    most, interval = float(np.log2(ALTERNATIVES + 1)), mean_interval(exposures)
    first = sum(row["rank"] == 1 for row in rows)
    sentence = (
        f"{len(rows)} canaries: mean exposure {interval.mean:.2f} of {most:.0f} bits ({interval.low:.2f} to "
        f"{interval.high:.2f}), {unseen:.2f} to expect of a model that never saw them; {first} are likelier than all "
        f"{ALTERNATIVES} random others: {'memorised' if p < 0.05 else 'no memorisation can be seen'} (p = {p:.4f})."
    )
    return {
        "canaries": rows, "exposure": asdict(interval), "unseen": unseen, "most": most, "first": first, "p": p,
        "sentences": [sentence],
    }  # fmt: skip


def _against_even_ranks(exposures: Sequence[float]) -> tuple[float, float]:
    """The mean exposure of a model that never saw the secrets, whose ranks are even; and how often such a model reaches
    the mean seen, by 10,000 draws (p = (1 + hits) / (1 + draws))."""
    candidates = ALTERNATIVES + 1
    bits_R = np.log2(candidates) - np.log2(np.arange(1, candidates + 1))
    drawn = np.random.default_rng(SEED).choice(bits_R, size=(RESAMPLES, len(exposures))).mean(axis=1)
    hits = int((drawn >= np.mean(exposures) - 1e-9).sum())
    return float(bits_R.mean()), (1 + hits) / (1 + RESAMPLES)
