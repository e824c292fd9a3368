"""Kept replies: asked once, by several at once, after a kill, and never for another question or contender."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.chat import Message
from tunesmith.contender import FewShotContender, Passage, PromptedContender, Reply, RetrievalContender
from tunesmith.errors import InputError
from tunesmith.evaluate.cache import ReplyCache

PROMPTS = [(Message("user", f"question {number}"),) for number in range(6)]


class Echo:
    """Answers with the question in capitals and counts how often it is asked."""

    def __init__(self, identity: str | None = "echo 1", *, batched: bool = False) -> None:
        self.name = "echo"
        self.identity = identity
        self.batched = batched
        self.asked: list[str] = []

    def answer_each(self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, done: Any) -> None:
        for number, messages in reversed(list(enumerate(prompts))):  # in another order than they were asked
            self.asked.append(messages[-1].content)
            done(number, Reply(messages[-1].content.upper(), 3, 2, 0.5 / len(prompts), "stop", cost=0.25))

    def answer(self, prompts: Sequence[Sequence[Message]], **_: Any) -> list[Reply]:
        raise AssertionError("replies are taken as they come")


@pytest.fixture
def cache(tmp_path: Path) -> ReplyCache:
    return ReplyCache(tmp_path / "replies.db")


def test_what_was_answered_is_not_asked_again_and_keeps_its_figures(cache: ReplyCache) -> None:
    echo = Echo()
    kept = cache.around(echo)
    finished: list[int] = []
    first = kept.answer(PROMPTS[:4], max_new_tokens=5)
    again = cache.around(Echo()).answer(PROMPTS, max_new_tokens=5, progress=finished.append)
    assert [reply.text for reply in again] == [f"QUESTION {number}" for number in range(6)]
    assert [reply.cached for reply in again] == [True] * 4 + [False] * 2
    assert [reply.latency_s for reply in again[:4]] == [reply.latency_s for reply in first]
    assert sum(finished) == 6 and again[0].cost == 0.25


@pytest.mark.parametrize(
    ("identity", "tokens", "prompt"),
    [("echo 2", 5, "question 0"), ("echo 1", 6, "question 0"), ("echo 1", 5, "question 0 ")],
)
def test_another_contender_limit_or_prompt_is_another_question(
    cache: ReplyCache, identity: str, tokens: int, prompt: str
) -> None:
    cache.around(Echo()).answer(PROMPTS, max_new_tokens=5)
    other = Echo(identity)
    (reply,) = cache.around(other).answer([(Message("user", prompt),)], max_new_tokens=tokens)
    assert other.asked == [prompt] and not reply.cached


def test_other_prompts_examples_and_passages_around_it_are_other_questions(cache: ReplyCache) -> None:
    echo = Echo()
    kept = cache.around(echo)
    pool = [row(f"q{number}") for number in range(2)]
    around = [
        kept,
        PromptedContender(kept, "Be brief.", name="p"),
        PromptedContender(kept, "Be kind.", name="k"),
        FewShotContender(kept, pool, k=1),
        RetrievalContender(kept, lambda question: [Passage("text", "doc", 1.0)]),
    ]
    for number, one in enumerate(around, start=1):
        one.answer(PROMPTS[:1], max_new_tokens=5)
        one.answer(PROMPTS[:1], max_new_tokens=5)
        assert len(echo.asked) == number
    (reply,) = around[-1].answer(PROMPTS[:1], max_new_tokens=5)
    assert reply.cached and reply.passages[0].source == "doc"


def test_a_prompt_asked_alone_is_timed_anew_where_others_were_asked_in_a_batch(cache: ReplyCache) -> None:
    cache.around(Echo(batched=True)).answer(PROMPTS, max_new_tokens=5)
    for cached in (False, True):
        (alone,) = cache.around(Echo(batched=True)).answer(PROMPTS[:1], max_new_tokens=5)
        assert (alone.latency_s, alone.cached) == (0.5, cached)
    cache.around(Echo("server")).answer(PROMPTS, max_new_tokens=5)
    assert cache.around(Echo("server")).answer(PROMPTS[:1], max_new_tokens=5)[0].cached


def test_one_that_may_answer_otherwise_each_time_is_not_kept(cache: ReplyCache) -> None:
    sampled = Echo(identity=None)
    assert cache.around(sampled) is sampled


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.evaluate.test_cache import PROMPTS, Echo
from tunesmith.evaluate.cache import ReplyCache

class Killed(Echo):
    def answer_each(self, prompts, *, max_new_tokens, done):
        def until(number, reply):
            done(number, reply)
            if number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        super().answer_each(prompts, max_new_tokens=max_new_tokens, done=until)

ReplyCache(Path(sys.argv[1])).around(Killed()).answer(PROMPTS, max_new_tokens=5)
"""


def test_a_killed_evaluation_goes_on_where_it_was(cache: ReplyCache) -> None:
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(cache.path)], cwd=root, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    echo = Echo()
    replies = cache.around(echo).answer(PROMPTS, max_new_tokens=5)
    assert echo.asked == ["question 2", "question 1", "question 0"]  # 5, 4 and 3 were on disk
    assert [reply.text for reply in replies] == [f"QUESTION {number}" for number in range(6)]


def test_several_evaluations_at_once_use_one_file(cache: ReplyCache) -> None:
    failed: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            prompts = [(Message("user", f"{number % 3} {row}"),) for row in range(40)]
            replies = cache.around(Echo()).answer(prompts, max_new_tokens=5)
            assert [reply.text for reply in replies] == [f"{number % 3} {row}" for row in range(40)]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failed == [] and not any(thread.is_alive() for thread in threads)


@pytest.mark.slow
def test_more_rows_than_a_query_takes_are_found(cache: ReplyCache) -> None:
    prompts = [(Message("user", str(number)),) for number in range(1100)]
    cache.around(Echo()).answer(prompts, max_new_tokens=5)
    assert all(reply.cached for reply in cache.around(Echo()).answer(prompts, max_new_tokens=5))


def test_a_file_that_is_no_database_is_named_with_what_to_do(cache: ReplyCache) -> None:
    cache.path.write_text("not a database, but long enough to be looked at\n" * 40)
    with pytest.raises(InputError, match=r"replies\.db cannot be used"):
        cache.around(Echo()).answer(PROMPTS, max_new_tokens=5)


def row(question: str) -> Any:
    from tests.evaluate.contenders import label_example

    return label_example(question, "a")
