"""The remote contender against a real server: busy, slow, broken and wrong ones; side by side, at a rate."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.teacher import completion, teacher
from tunesmith.chat import Message
from tunesmith.errors import InputError, ModelError
from tunesmith.remote import RemoteOptions, UrlContender

PROMPT = (Message("user", "hi"),)
MANY = [(Message("user", f"question {number}"),) for number in range(8)]


def at(spec: str, **options: Any) -> UrlContender:
    return UrlContender(
        spec.partition("#")[0], "m", options=RemoteOptions(**{"wait_s": 0.001, "retries": 0, **options})
    )


def ask(spec: str, **options: Any) -> str:
    return at(spec, **options).answer([PROMPT], max_new_tokens=5)[0].text


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


def test_a_server_that_takes_too_long_is_given_up_on_and_asked_again() -> None:
    def slow(number: int, body: object) -> str:
        time.sleep(0.3 if number < 1 else 0)
        return "late"

    with teacher(slow) as server:
        with pytest.raises(ModelError, match="did not answer"):
            ask(server.spec, timeout_s=0.05)
        assert ask(server.spec, timeout_s=5) == "late"
    with teacher(slow) as server:
        assert ask(server.spec, timeout_s=0.05, retries=3) == "late"


@pytest.mark.parametrize("document", ["<html>", "[]", {"choices": []}, {"choices": [{}]}, {"error": "x"}, "null"])
def test_an_answer_that_is_no_completion_is_an_error_that_shows_it(document: object) -> None:
    with teacher(lambda number, body: (200, document)) as server, pytest.raises(ModelError, match="OpenAI-compatible"):
        ask(server.spec, retries=5)


def test_a_cut_reply_says_so_and_tokens_are_priced() -> None:
    with teacher(lambda number, body: (200, completion("half", "length"))) as server:
        priced = at(server.spec, prompt_price=2.0, completion_price=10.0)
        (reply,) = priced.answer([PROMPT], max_new_tokens=5)
        (free,) = at(server.spec).answer([PROMPT], max_new_tokens=5)
    assert not reply.stopped and (reply.prompt_tokens, reply.completion_tokens) == (100, 10)
    assert reply.cost == pytest.approx((100 * 2 + 10 * 10) / 1_000_000) and free.cost is None


def test_a_server_that_counts_no_tokens_leaves_the_cost_unknown() -> None:
    answer = {"choices": [{"message": {"content": "hi"}}]}
    with teacher(lambda number, body: (200, answer)) as server:
        (reply,) = at(server.spec, prompt_price=2.0, completion_price=10.0).answer([PROMPT], max_new_tokens=5)
    assert reply.cost is None


def test_requests_go_side_by_side_and_replies_stay_in_order() -> None:
    together = threading.Barrier(4, timeout=10)  # broken unless four are under way at the same time

    def script(number: int, body: dict[str, Any]) -> str:
        together.wait()
        return str(body["messages"][0]["content"]).upper()

    with teacher(script) as server:
        replies = at(server.spec, concurrency=4).answer(MANY, max_new_tokens=5)
    assert [reply.text for reply in replies] == [f"QUESTION {number}" for number in range(8)]


def test_requests_keep_the_rate_and_wait_as_long_as_the_server_says() -> None:
    starts: list[float] = []

    def script(number: int, body: dict[str, Any]) -> str:
        starts.append(time.monotonic())
        return "ok"

    with teacher(script) as server:
        at(server.spec, concurrency=4, rpm=60 * 20).answer(MANY[:5], max_new_tokens=5)
    assert starts[-1] - starts[0] >= 4 * 0.05 - 0.02
    with teacher(lambda number, body: (429, "later") if number == 0 else "ok") as server:
        start = time.monotonic()
        server.retry_after = "1"
        (reply,) = at(server.spec, retries=1).answer([PROMPT], max_new_tokens=5)
    assert time.monotonic() - start >= 1.0 and reply.latency_s < 0.9  # the wait is no latency of the server's


def test_one_failure_for_good_stops_the_others() -> None:
    with teacher(lambda number, body: (400, "no") if number == 0 else (503, "later")) as server:
        with pytest.raises(ModelError):
            at(server.spec, concurrency=2, retries=50, wait_s=30).answer(MANY, max_new_tokens=5)
        assert len(server.asked) < len(MANY)


def test_the_key_comes_from_the_named_variable_and_a_missing_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "abc")
    with teacher(lambda number, body: "hi") as server:
        ask(server.spec, key_env="MY_KEY")
        ask(server.spec)
        assert server.keys == ["Bearer abc", None]
        with pytest.raises(InputError, match="OTHER_KEY, which is not set"):
            ask(server.spec, key_env="OTHER_KEY")


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"rpm": -1}, {"timeout_s": 0}, {"prompt_price": 1.0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        RemoteOptions(**options)


def test_only_replies_that_repeat_have_an_identity() -> None:
    greedy = UrlContender("http://h/v1", "m")
    assert greedy.identity != UrlContender("http://h/v1", "n").identity
    assert UrlContender("http://h/v1", "m", options=RemoteOptions(temperature=1.0)).identity is None
    assert UrlContender("http://h/v1", "m", options=RemoteOptions(temperature=1.0, seed=3)).identity
