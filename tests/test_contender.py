"""Contenders around contenders: what is asked in the end, what is left out, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.evaluate.contenders import label_example
from tunesmith.chat import Example, Message
from tunesmith.contender import (
    FewShotContender,
    Passage,
    PromptedContender,
    Reply,
    RetrievalContender,
    as_asked,
    innermost,
    shots_of,
    spread,
)
from tunesmith.errors import InputError

SYSTEM, QUESTION = Message("system", "Classify."), Message("user", "where is my card?")
POOL = [label_example(f"example {number}", "abc"[number % 3]) for number in range(9)]
PASSAGES = [Passage(f"text {number} " + "x" * 20, f"doc {number}", 1 / (1 + number)) for number in range(3)]


class Listener:
    """Keeps what it is asked; its context takes so many characters."""

    name = "listener"

    def __init__(self, chars: int = 10_000) -> None:
        self.chars = chars
        self.asked: list[Sequence[Message]] = []

    def room(self, messages: Sequence[Message]) -> int:
        return self.chars - sum(len(message.content) for message in messages)

    def answer(self, prompts: Sequence[Sequence[Message]], **_: Any) -> list[Reply]:
        self.asked += prompts
        return [Reply("a", 1, 1, 0.1, "stop") for _ in prompts]


def texts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_fixed_examples_are_turns_after_the_system_prompt_the_same_for_all_rows() -> None:
    listener = Listener()
    few = FewShotContender(listener, POOL, k=3)
    replies = few.answer([(SYSTEM, QUESTION), (Message("user", "other"),)], max_new_tokens=5)
    first, second = (texts(asked) for asked in listener.asked)
    assert first[0] == ("system", "Classify.") and first[-1] == ("user", "where is my card?")
    assert [role for role, _ in first[1:-1]] == ["user", "assistant"] * 3
    assert first[1:-1] == second[:-1]
    assert {content for role, content in second if role == "assistant"} == {"a", "b", "c"}  # a label each
    assert [reply.examples for reply in replies] == [3, 3] and few.notes(replies) == []
    assert not any(message.trained for message in listener.asked[0])


def test_the_nearest_example_stands_last_and_fixed_ones_fill_up() -> None:
    listener = Listener()
    few = FewShotContender(listener, POOL, k=3, nearest=lambda question, k: [7, 2])
    (reply,) = few.answer([(QUESTION,)], max_new_tokens=5)
    asked = [content for role, content in texts(listener.asked[0]) if role == "user"]
    assert asked[-3:] == ["example 2", "example 7", "where is my card?"] and len(asked) == 4
    assert reply.latency_s > 0.1  # the search is part of the answer


def test_examples_that_do_not_fit_are_left_out_counted_and_said() -> None:
    few = FewShotContender(Listener(60), POOL, k=4)
    short, long = (Message("user", "x"),), (Message("user", "x" * 40),)
    replies = few.answer([short, long], max_new_tokens=10)
    assert [reply.examples for reply in replies] == [4, 1]
    (note,) = few.notes(replies)
    assert note.startswith("1 of 2 rows were shown fewer than 4 examples (the fewest: 1)")


def test_passages_stand_before_the_question_numbered_with_their_sources() -> None:
    listener = Listener()
    rag = RetrievalContender(listener, lambda question: PASSAGES[:2])
    (reply,) = rag.answer([(SYSTEM, QUESTION)], max_new_tokens=5)
    assert texts(listener.asked[0]) == [
        ("system", "Classify."),
        ("user", f"Passages that may help:\n\n[1] doc 0\n{PASSAGES[0].text}\n\n[2] doc 1\n{PASSAGES[1].text}\n\n"
         "where is my card?"),
    ]  # fmt: skip
    assert reply.passages == tuple(PASSAGES[:2])


def test_what_is_looked_for_is_the_last_user_turn_and_nothing_found_changes_nothing() -> None:
    heard: list[str] = []
    listener = Listener()
    rag = RetrievalContender(listener, lambda question: heard.append(question) or [])  # type: ignore[func-returns-value]
    talk = (Message("user", "hi"), Message("assistant", "hello"), QUESTION)
    rag.answer([talk, talk], max_new_tokens=5)
    assert heard == ["where is my card?"] and listener.asked == [talk, talk]


def test_passages_that_do_not_fit_go_after_the_examples() -> None:
    """Context for both: all examples go before the first passage does."""
    listener = Listener(115)
    rag = RetrievalContender(listener, lambda question: PASSAGES)
    few = FewShotContender(rag, POOL, k=2)
    (reply,) = few.answer([(Message("user", "?"),)], max_new_tokens=1)
    assert (reply.examples, len(reply.passages)) == (0, 2)
    assert "fewer than 3 passages" in rag.notes([reply])[0]


def test_layers_add_up_to_what_the_model_is_asked() -> None:
    listener = Listener()
    prompted = PromptedContender(listener, "Be brief.", name="p")
    few = FewShotContender(RetrievalContender(prompted, lambda question: PASSAGES[:1]), POOL, k=1)
    few.answer([(SYSTEM, QUESTION)], max_new_tokens=5)
    assert as_asked(few, (SYSTEM, QUESTION), max_new_tokens=5) == listener.asked[0]
    assert listener.asked[0][0] == Message("system", "Be brief.") and innermost(few) is listener
    assert listener.asked[0][-1].content.endswith("where is my card?")


def test_only_answered_rows_without_tools_are_shown_and_too_few_are_refused() -> None:
    tools = Example(POOL[0].messages, tools=({"type": "function", "function": {"name": "f"}},))
    unanswered = Example((Message("user", "2 + 2?"),))
    assert shots_of([POOL[0], tools, unanswered]) == [POOL[0]]
    with pytest.raises(InputError, match="show 2 examples, and there are 1"):
        FewShotContender(Listener(), [POOL[0], tools], k=2)


def test_the_fixed_order_shows_every_label_before_any_twice_and_is_always_the_same() -> None:
    rows = [label_example(f"q{number}", "a" if number < 20 else f"label {number}") for number in range(24)]
    order = spread(rows)
    assert sorted(order) == list(range(24)) and order == spread(rows)
    assert {rows[place].answer for place in order[:5]} == {row.answer for row in rows}
