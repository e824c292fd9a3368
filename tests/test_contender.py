"""The remote contender against a real server: busy, slow, broken and wrong ones."""

from __future__ import annotations

import time

import pytest

from tests.teacher import completion, teacher
from tunesmith.chat import Message
from tunesmith.contender import UrlContender
from tunesmith.errors import ModelError

PROMPT = (Message("user", "hi"),)


def ask(spec: str, **options: object) -> str:
    contender = UrlContender(spec.partition("#")[0], "m", wait_s=0.001, **options)  # type: ignore[arg-type]
    return contender.answer([PROMPT], max_new_tokens=5)[0].text


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not() -> None:
    with teacher(
        lambda number, body: "hello" if number == 2 else ((429, "slow down"), (503, "later"))[number]
    ) as server:
        assert ask(server.spec, retries=2) == "hello" and len(server.asked) == 3
    with teacher(lambda number, body: (401, "who are you?")) as server:
        with pytest.raises(ModelError, match="401: who are you"):
            ask(server.spec, retries=5)
        assert len(server.asked) == 1


def test_without_retries_the_first_trouble_is_the_last() -> None:
    with teacher(lambda number, body: (500, "oops")) as server, pytest.raises(ModelError, match="500: oops"):
        ask(server.spec)


def test_a_server_that_takes_too_long_is_given_up_on() -> None:
    def slow(number: int, body: object) -> str:
        time.sleep(0.3 if number < 1 else 0)
        return "late"

    with teacher(slow) as server:
        with pytest.raises(ModelError, match="did not answer"):
            ask(server.spec, timeout_s=0.05)
        assert ask(server.spec, timeout_s=5) == "late"


@pytest.mark.parametrize("document", ["<html>", "[]", {"choices": []}, {"choices": [{}]}, {"error": "x"}, "null"])
def test_an_answer_that_is_no_completion_is_an_error_that_shows_it(document: object) -> None:
    with teacher(lambda number, body: (200, document)) as server, pytest.raises(ModelError, match="OpenAI-compatible"):
        ask(server.spec)


def test_a_cut_reply_says_so() -> None:
    with teacher(lambda number, body: (200, completion("half", "length"))) as server:
        reply = UrlContender(server.spec.partition("#")[0], "m").answer([PROMPT], max_new_tokens=5)[0]
    assert not reply.stopped and (reply.prompt_tokens, reply.completion_tokens) == (100, 10)
