"""Draft rows from a teacher: asked for in the task's form, judged against it, near copies refused, every one marked.

Not here: the wording of requests (asks), what a row must be like (form), approving drafts (review).
Called by the commands `generate` and `augment`. With a deterministic teacher the same plan gives the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.chat import Example, Message
from tunesmith.contender import Contender, Reply
from tunesmith.data.checks.language import language_findings
from tunesmith.data.checks.wording import request_text
from tunesmith.data.drafts.asks import ROWS_PER_ASK, VERSION, Ask, Asker, How, Pair, pairs
from tunesmith.data.drafts.form import Novelty, learn_form
from tunesmith.data.drafts.journal import Journal
from tunesmith.data.load import SourceRow
from tunesmith.errors import InputError

FRUITLESS = 3  # requests in a row without a new row after which a label, or the task, is left
LOCAL_ROUND = 8  # requests that a local teacher is asked at once
MAX_REPLY_TOKENS = 4096
OnProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made. `inputs` (with their lines) only for how "answer"; then n is their number."""

    how: How
    n: int
    seed: int = 0
    max_requests: int = 0  # 0: four times what would do if every row were taken
    round_size: int = 1
    inputs: Sequence[tuple[int, tuple[Message, ...]]] = ()

    @property
    def request_limit(self) -> int:
        if self.how == "answer":
            return min(self.max_requests or len(self.inputs), len(self.inputs))
        rows = 2 if self.how == "paraphrase" else ROWS_PER_ASK
        return self.max_requests or 4 * -(-self.n // rows)


@dataclass(slots=True)
class Made:
    """What came of it. `reasons` counts every row of every reply that was not taken, and replies that were no rows."""

    drafts: list[Example] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    requests_before: int = 0  # of them, answered in an earlier, interrupted command
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stopped: str = ""  # why there are fewer rows than asked for

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": len(self.drafts), "not_taken": dict(self.reasons), "requests": self.requests,
            "requests_before": self.requests_before, "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens, "stopped": self.stopped,
        }  # fmt: skip


def make(
    rows: Sequence[SourceRow], teacher: Contender, *, order: Order, journal: Path, on_progress: OnProgress | None = None
) -> Made:
    """Drafts in the form of `rows`, which are one question and its answer each; their lines go into the marks.

    Raises InputError when the rows cannot be imitated or the journal belongs to another command, ModelError when the
    teacher does not answer: what came before is in the journal, and the same call goes on from there.
    """
    maker = _Maker(rows, teacher.name, order)
    replies = Journal(journal, maker.plan())
    maker.made.requests_before = len(replies)
    while batch := maker.next_round() or (maker.drop_other_languages() and maker.next_round()):
        asked = [(number, ask) for number, ask in batch if replies.get(number, ask.sha256) is None]
        prompts = [ask.messages for _, ask in asked]
        fresh = teacher.answer(prompts, max_new_tokens=maker.reply_tokens) if asked else []
        for (number, ask), reply in zip(asked, fresh, strict=True):
            replies.put(number, ask.sha256, reply=reply)
        before = len(maker.made.drafts)
        for number, ask in batch:
            maker.take(number, ask, reply=replies.get(number, ask.sha256))
        if on_progress:
            on_progress(len(maker.made.drafts) - before)
    return maker.made


class _Maker:
    """The state from which the next requests follow: what has been taken so far, and for which label."""

    def __init__(self, rows: Sequence[SourceRow], teacher: str, order: Order) -> None:
        seeds = [row.example for row in rows]
        self.rows, self.teacher, self.order = rows, teacher, order
        self.form = learn_form(seeds)
        if order.how == "hard-negatives" and self.form.kind == "text":
            what = "Hard negatives need answers that are right or wrong: these rows have free texts."
            raise InputError(what, "Use --paraphrase, or rows with labels or JSON objects as answers.")
        self.asker = Asker(order.how, seeds, self.form, seed=order.seed)
        self.made = Made()
        self.seen = Novelty()
        for seed in seeds:
            self.seen.add(request_text(seed))
        self.texts: defaultdict[str | int | None, list[str]] = defaultdict(list)  # inputs of the drafts by group
        self.seed_labels = Counter(seed.answer.strip() for seed in seeds if self.form.kind == "label")
        self.fruitless: Counter[str | int | None] = Counter()
        rows_per_reply = 1 if order.how == "answer" else ROWS_PER_ASK
        chars = self.form.answer_chars[1] + (0 if order.how == "answer" else self.form.input_chars[1])
        self.reply_tokens = min(MAX_REPLY_TOKENS, 32 + rows_per_reply * (chars // 2 + 8))

    def plan(self) -> dict[str, Any]:
        """What must be the same for a journal to be gone on with."""
        ids = [row.example.id for row in self.rows]
        asked = [[turn.as_dict() for turn in turns] for _, turns in self.order.inputs]
        return {
            "how": self.order.how, "n": self.order.n, "seed": self.order.seed, "teacher": self.teacher,
            "version": VERSION, "round": self.order.round_size, "rows": _digest(ids), "inputs": _digest(asked),
        }  # fmt: skip

    def next_round(self) -> list[tuple[int, Ask]]:
        """Requests with their numbers; none when there is enough, or no more to be had."""
        made = self.made
        made.stopped = ""
        if len(made.drafts) >= self.order.n:
            return []
        left = self.order.request_limit - made.requests
        if left <= 0 and not (self.order.how == "answer" and made.requests == len(self.order.inputs)):
            made.stopped = f"the limit of {self.order.request_limit} requests"
        batch: list[tuple[int, Ask]] = []
        planned: Counter[str] = Counter()
        for number in range(made.requests, made.requests + min(left, self.order.round_size)):
            if self.order.how == "answer":
                batch.append((number, self.asker.answer(number, self.order.inputs[number][1])))
                continue
            label = self._next_label(planned)
            if self.fruitless[label] >= FRUITLESS and not self.asker.by_row:
                made.stopped = "the teacher brings nothing new"
                break
            batch.append((number, self.asker.ask(number, label=label, made=self.texts)))
            if label is not None:
                planned[label] += ROWS_PER_ASK
        return batch

    def _next_label(self, planned: Counter[str]) -> str | None:
        """The label with the fewest rows, seeds among them, of those that still bring any."""
        if self.form.kind != "label" or self.asker.by_row:
            return None

        def size(label: str) -> tuple[bool, int, str]:
            total = len(self.texts[label]) + planned[label] + self.seed_labels[label]
            return self.fruitless[label] >= FRUITLESS, total, label

        return min(self.form.labels, key=size)

    def take(self, number: int, ask: Ask, *, reply: Reply | None) -> None:
        """Judge what a reply brings; every row of it is taken or counted under a reason."""
        assert reply is not None
        made, before = self.made, len(self.made.drafts)
        made.requests += 1
        made.prompt_tokens += reply.prompt_tokens
        made.completion_tokens += reply.completion_tokens
        found = pairs(reply.text, ask, form=self.form)
        if found is None or (ask.input and not reply.stopped):
            made.reasons["reply cut off" if not reply.stopped else "reply is no JSON array"] += 1
            found = []
        for pair in found:
            reason = self._reason(pair, ask)
            if reason:
                made.reasons[reason] += 1
                continue
            self.seen.add(pair.input)
            self.texts[ask.group].append(pair.input)
            made.drafts.append(self._row(number, ask, pair))
        self.fruitless[ask.group] = 0 if len(made.drafts) > before else self.fruitless[ask.group] + 1

    def drop_other_languages(self) -> int:
        """Take back the drafts in another language than the seeds and the other drafts; how many there were."""
        drafts = [SourceRow(-number, draft) for number, draft in enumerate(self.made.drafts, start=1)]
        lines = [finding.line or 0 for finding in language_findings([*self.rows, *drafts])]
        odd = {-line - 1 for line in lines if line < 0}
        self.made.drafts = [draft for number, draft in enumerate(self.made.drafts) if number not in odd]
        self.made.reasons["other language"] += len(odd)
        self.made.reasons = +self.made.reasons
        return len(odd)

    def _reason(self, pair: Pair, ask: Ask) -> str | None:
        fault = self.form.fault(pair.input, pair.answer)
        # What people really asked is as long as it is: only what the teacher wrote is judged.
        if fault and not (ask.input and fault.startswith("input")):
            return fault
        if any(text not in pair.input for text in ask.keep):
            return "a value of the answer is gone from the input"
        copy = None if ask.input else self.seen.nearest(pair.input)
        if copy is not None:
            return "near copy of a seed" if copy < len(self.rows) else "near copy of another draft"
        return "more than asked for" if len(self.made.drafts) >= self.order.n else None

    def _row(self, number: int, ask: Ask, pair: Pair) -> Example:
        asked = ask.input or (*self.form.system, Message("user", pair.input))
        mark: dict[str, Any] = {
            "teacher": self.teacher, "how": self.order.how, "prompt_sha256": ask.sha256, "prompt_version": VERSION,
            "seed_lines": [self.rows[row].line for row in ask.seed_rows],
        }  # fmt: skip
        if ask.input:
            mark["input_line"] = self.order.inputs[number][0]
        return Example((*asked, Message("assistant", pair.answer, trained=True)), metadata={"generated": mark})


def _digest(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values), ensure_ascii=False).encode()).hexdigest()[:16]
