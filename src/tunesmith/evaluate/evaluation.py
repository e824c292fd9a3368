"""What an evaluation found: every reply and its scores, summed up with intervals and paired tests.

Not here: asking and scoring (run), words (verdict), pages (report). Made by run; read by surfaces and decisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.mistakes import count_confusions, count_worst_labels, telling_rows
from tunesmith.evaluate.scorers.score import Aggregate, Score
from tunesmith.evaluate.stats import (
    Difference,
    Interval,
    detectable_difference,
    holm,
    mean_interval,
    paired_difference,
)
from tunesmith.evaluate.visible import visible_sentence


@dataclass(frozen=True, slots=True)
class Answers:
    """What one contender replied to every row, and the score of each reply by each scorer."""

    name: str
    replies: list[Reply]
    scores: dict[str, list[Score]]
    aggregates: dict[str, Aggregate] = field(default_factory=dict)  # of the scorers that have one
    notes: tuple[str, ...] = ()  # what must be said of how it was asked
    replies_per_s: float | None = None
    alone_s: tuple[float, ...] = ()  # times of single requests, with nothing else under way

    def values(self, scorer: str) -> list[float]:
        return [score.value for score in self.scores[scorer]]

    def summary(self) -> dict[str, Any]:
        """Means and intervals by scorer, latency in seconds, tokens per row, share of replies that ended by itself.

        `latency_s` is of a row as it was asked, in a batch its share; `one_request_s` of a request with nothing else
        under way. `cost` is what servers charge for these replies, None unless every reply's is known.
        """
        latency_s_N = np.array([reply.latency_s for reply in self.replies])
        p50, p95 = np.percentile(latency_s_N, (50, 95))
        costs = [reply.cost for reply in self.replies if reply.cost is not None]
        return {
            "name": self.name,
            "scores": {scorer: asdict(mean_interval(self.values(scorer))) for scorer in self.scores},
            "aggregates": {scorer: aggregate.as_dict() for scorer, aggregate in self.aggregates.items()},
            "latency_s": {"mean": float(latency_s_N.mean()), "p50": float(p50), "p95": float(p95)},
            "tokens": {
                "prompt_mean": float(np.mean([reply.prompt_tokens for reply in self.replies])),
                "completion_mean": float(np.mean([reply.completion_tokens for reply in self.replies])),
            },
            "stop_rate": float(np.mean([reply.stopped for reply in self.replies])),
            "one_request_s": _percentiles(self.alone_s),
            "replies_per_s": self.replies_per_s,
            "cost": sum(costs) if len(costs) == len(self.replies) else None,
            "cached": sum(reply.cached for reply in self.replies),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every reply and score. The first scorer is the main one; the first contender is compared with the last."""

    examples: tuple[Example, ...]
    answers: tuple[Answers, ...]
    scorers: tuple[str, ...]
    labels: tuple[str, ...]  # empty when the answers are not labels

    @property
    def rows(self) -> int:
        return len(self.examples)

    @property
    def replies(self) -> dict[str, list[Reply]]:
        """Contender's name -> its replies, in the order of the examples."""
        return {answers.name: answers.replies for answers in self.answers}

    def of(self, contender: str) -> Answers:
        """The answers of one contender; InputError when it was not asked."""
        for answers in self.answers:
            if answers.name == contender:
                return answers
        raise InputError(f"{contender!r} is not in this evaluation.", f"It has {', '.join(self.replies)}.")

    def interval(self, contender: str, scorer: str) -> Interval:
        return mean_interval(self.of(contender).values(scorer))

    def difference(self, a: str, b: str, *, scorer: str) -> Difference:
        """b minus a over the same rows."""
        return paired_difference(self.of(a).values(scorer), self.of(b).values(scorer))

    def differences(self) -> list[dict[str, Any]]:
        """Every pair of contenders in their order (b after a), by every scorer. `p_holm` is p corrected for all pairs
        of that scorer; `detectable` the smallest difference that so many rows show, and `sentence` says it."""
        pairs = list(combinations(self.answers, 2))
        found = {scorer: [self.difference(a.name, b.name, scorer=scorer) for a, b in pairs] for scorer in self.scorers}
        corrected = {scorer: holm([one.p for one in differences]) for scorer, differences in found.items()}
        return [
            {
                "a": a.name,
                "b": b.name,
                "scorer": scorer,
                **asdict(found[scorer][number]),
                "p_holm": corrected[scorer][number],
                "detectable": detectable_difference(found[scorer][number]),
                "sentence": visible_sentence(found[scorer][number]),
            }
            for number, (a, b) in enumerate(pairs)
            for scorer in self.scorers
        ]

    def disagreements(self, limit: int = 20) -> list[dict[str, Any]]:
        """The rows that tell most about the last contender against the first: gains, then losses (main scorer)."""
        if len(self.answers) < 2:
            return []
        main = self.scorers[0]
        first, last = self.answers[0].values(main), self.answers[-1].values(main)
        rows = telling_rows(first, last, expected=[example.answer for example in self.examples], limit=limit)
        return [
            {
                "row": row + 1,
                "prompt": prompt_text(self.examples[row]),
                "expected": self.examples[row].answer,
                "replies": {answers.name: answers.replies[row].text for answers in self.answers},
                "scores": {answers.name: answers.scores[main][row].value for answers in self.answers},
            }
            for row in rows
        ]

    def confusions(self) -> list[dict[str, object]]:
        """Wrong label pairs of the last contender, most frequent first; empty when the answers are not labels."""
        return count_confusions(*self._last_labels(), labels=self.labels) if self.labels else []

    def worst_labels(self) -> list[dict[str, object]]:
        """Rows and correct rows of each label for the last contender, worst first; empty when there are no labels."""
        return count_worst_labels(*self._last_labels()) if self.labels else []

    def _last_labels(self) -> tuple[list[str], list[str]]:
        expected = [example.answer.strip() for example in self.examples]
        return expected, [reply.text.strip() for reply in self.answers[-1].replies]

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "contenders": [answers.summary() for answers in self.answers],
            "differences": self.differences(),
            "disagreements": self.disagreements(),
            "confusions": self.confusions(),
            "worst_labels": self.worst_labels(),
        }

    def write_replies(self, path: str | Path) -> Path:
        """One JSON line for each row and contender; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            for line in self._reply_lines():
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        unfinished.replace(path)
        return path

    def _reply_lines(self) -> Iterator[dict[str, Any]]:
        for row, example in enumerate(self.examples):
            for answers in self.answers:
                reply = answers.replies[row]
                yield {
                    "row": row + 1,
                    "example": example.id,
                    "expected": example.answer,
                    "contender": answers.name,
                    "reply": reply.text,
                    "scores": {scorer: asdict(scores[row]) for scorer, scores in answers.scores.items()},
                    "prompt_tokens": reply.prompt_tokens,
                    "completion_tokens": reply.completion_tokens,
                    "latency_s": reply.latency_s,
                    "finish_reason": reply.finish_reason,
                    "cost": reply.cost,
                    "cached": reply.cached,
                    "examples_shown": reply.examples,
                    "passages": [asdict(passage) for passage in reply.passages],
                }


def prompt_text(example: Example) -> str:
    """What the person wrote: the user's turn alone, or every turn but the system's with its role if there are more."""
    turns = [message for message in example.prompt if message.role not in ("system", "developer")]
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in turns)


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    p50, p95 = np.percentile(seconds, (50, 95))
    return {"p50": float(p50), "p95": float(p95), "rows": len(seconds)}
