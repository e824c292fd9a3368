"""Planted tasks through the whole of it, contenders to verdict: each has one right answer, and it is the verdict."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.decide.rungs import compare
from tests.decide.test_ladder import Scripted, ladder
from tunesmith.chat import Example, Message
from tunesmith.contender import Contender, FewShotContender, Passage, Progress, Reply, RetrievalContender
from tunesmith.decide.costs import Answers
from tunesmith.decide.judged import Verdict
from tunesmith.decide.ladder import Built, Offer
from tunesmith.decide.rows import Rows, prove_apart
from tunesmith.decide.verdict import decide
from tunesmith.evaluate.floor import FloorContender

LABELS = {"card": "my card is lost", "refund": "i want my money back", "login": "i cannot sign in"}
PAID = {"floor": 0.00001, "prompt": 0.001, "few-shot": 0.003, "retrieval": 0.004, "fine-tune": 0.0011}
Answer = Callable[[Sequence[Message]], str]


class Paid:
    """A contender whose replies have a price: what a rung costs does not depend on how fast the test runs."""

    def __init__(self, inner: Contender, cost: float) -> None:
        self.name, self.cost, self.real = inner.name, cost, inner

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        replies = self.real.answer(prompts, max_new_tokens=max_new_tokens, progress=progress)
        return [replace(reply, cost=self.cost) for reply in replies]


def row(text: str, answer: str) -> Example:
    return Example((Message("user", text), Message("assistant", answer, trained=True)))


def sorting(count: int, *, first: int = 0) -> list[Example]:
    """Messages whose words say which label they have."""
    return [row(f"{list(LABELS.values())[number % 3]}, case {number}", list(LABELS)[number % 3])
            for number in range(first, first + count)]  # fmt: skip


def facts(count: int, *, first: int = 0) -> list[Example]:
    """Numbers that nobody can guess."""
    return [row(f"What is the code of part {number}?", f"C{number * 7919 % 9973}") for number in
            range(first, first + count)]  # fmt: skip


def paid_offer(kind: str, contender: Contender) -> Offer:
    return Offer(kind, lambda seconds: Built(Paid(contender, PAID[kind])), is_remote=True)


def climbed(folder: Path, task: Callable[..., list[Example]], contenders: dict[str, Contender], test: int) -> Verdict:
    rows = Rows(task(60), task(20, first=60), task(test, first=80), key=lambda one: one.prompt[-1].content)
    offers = {name: paid_offer(name, contender) for name, contender in contenders.items()}
    rungs, choices, not_measured, used = ladder(folder, offers, given=rows, said=[]).climb()
    assert not not_measured
    assert prove_apart(used, choices)["disjoint"]
    return decide(rungs, Answers(), margin=0.02, compare=compare)


def dull(messages: Sequence[Message]) -> str:
    return "I am not sure."


def by_label(messages: Sequence[Message]) -> str:
    return next(label for label, words in LABELS.items() if words in messages[-1].content)


def slips(answer: Answer, every: int) -> Answer:
    """As `answer`, but wrong now and then: drawn by the question, so the same each time."""
    return lambda messages: "?" if random.Random(messages[-1].content).random() < 1 / every else answer(messages)


def test_where_the_prompt_is_enough_the_prompt_is_the_verdict(tmp_path: Path) -> None:
    prompt = Scripted("prompt", by_label)
    contenders: dict[str, Contender] = {
        "prompt": prompt,
        "few-shot": FewShotContender(prompt, sorting(10), k=3, name="few-shot"),
        "fine-tune": Scripted("fine-tune", by_label),
    }
    assert climbed(tmp_path, sorting, contenders, 240).chosen == "prompt"


def test_where_the_facts_are_only_in_the_documents_retrieval_is_the_verdict(tmp_path: Path) -> None:
    def read(messages: Sequence[Message]) -> str:
        """Copies the code out of a passage, if one about the part is there."""
        part = re.findall(r"part (\d+)\?", messages[-1].content)[-1]
        found = re.search(rf"Part {part} has the code (C\d+)\.", messages[-1].content)
        return found[1] if found else "C0"

    documents = {one.prompt[-1].content: one.answer for one in facts(400)}

    def retrieve(question: str) -> list[Passage]:
        part = re.findall(r"\d+", question)[-1]
        return [Passage(f"Part {part} has the code {documents[question]}.", "parts.md", 1.0)]

    base = Scripted("prompt", read)
    contenders: dict[str, Contender] = {
        "prompt": base,
        "few-shot": FewShotContender(base, facts(10), k=3, name="few-shot"),
        "fine-tune": Scripted("fine-tune", slips(dull, 2)),
        "retrieval": RetrievalContender(base, retrieve, name="retrieval"),
    }
    assert climbed(tmp_path, facts, contenders, 240).chosen == "retrieval"


@pytest.mark.parametrize("floor_is_there", [False, True])
def test_where_only_training_helps_it_is_the_fine_tune_unless_the_plain_floor_does_as_well(
    tmp_path: Path, floor_is_there: bool
) -> None:
    contenders: dict[str, Contender] = {
        "prompt": Scripted("prompt", dull),
        "few-shot": Scripted("few-shot", slips(by_label, 2)),
        "fine-tune": Scripted("fine-tune", by_label),
    }
    if floor_is_there:
        contenders["floor"] = FloorContender(sorting(60))
    verdict = climbed(tmp_path, sorting, contenders, 240)
    assert verdict.chosen == ("floor" if floor_is_there else "fine-tune")


def test_where_there_are_too_few_rows_it_is_said_and_nothing_is_chosen(tmp_path: Path) -> None:
    contenders: dict[str, Contender] = {
        "prompt": Scripted("prompt", slips(by_label, 4)),
        "fine-tune": Scripted("fine-tune", slips(by_label, 5)),
    }
    verdict = climbed(tmp_path, sorting, contenders, 40)
    assert (verdict.outcome, verdict.chosen) == ("too few rows to say", None)
    assert any(change.startswith("Rows: ") for change in verdict.changes)
