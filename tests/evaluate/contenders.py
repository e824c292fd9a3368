"""Test doubles of this folder: examples and contenders whose replies are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.chat import Example, Message
from tunesmith.contender import Reply


def label_example(question: str, answer: str) -> Example:
    system = Message("system", "Classify.")
    return Example((system, Message("user", question), Message("assistant", answer, trained=True)))


class Fixed:
    """Replies the given texts in order and counts how often it was asked."""

    def __init__(self, name: str, texts: Sequence[str], *, finish_reason: str = "stop") -> None:
        self.name = name
        self.texts = list(texts)
        self.finish_reason = finish_reason
        self.asked: list[Sequence[Sequence[Message]]] = []

    def answer(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Reply]:
        self.asked.append(prompts)
        if progress:
            progress(len(prompts))
        return [
            Reply(text, 10, 1 + number % 3, 0.1 * (number + 1), self.finish_reason)
            for number, text in enumerate(self.texts)
        ]
