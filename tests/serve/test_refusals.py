"""What the server refuses, and how OpenAI's client sees it: fields, lengths, bodies, routes, hosts and keys."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tunesmith.serve.app import create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import running

HELLO: list[Any] = [{"role": "user", "content": "My card is lost, case 7."}]


def ask(client: openai.OpenAI, model: str, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": model, "messages": HELLO, "max_tokens": 24, **options})


def test_an_unknown_model_is_404_and_names_those_there_are(client: openai.OpenAI) -> None:
    for call in (lambda: ask(client, "green"), lambda: client.models.retrieve("green/x")):
        with pytest.raises(openai.NotFoundError, match="red, blue, plain") as caught:
            call()
        assert caught.value.code == "model_not_found"
        assert caught.value.request_id


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "developer"),
        ({"messages": [*HELLO, {"role": "user", "content": None}]}, "messages[1].content", "string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "text parts"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls", "function 'name'"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages", "follows no call"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "no function with a 'name'"),
        ({"tool_choice": "required"}, "tool_choice", "no 'tools' to call"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "has no 'json_schema'"),
        ({"top_logprobs": 3}, "top_logprobs", "needs 'logprobs'"),
        ({"n": 33}, "n", "less than or equal to 32"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "no token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"259": 1}}, "logit_bias", "no token 259:"),
        ({"extra_body": {"top_k": 5}}, "top_k", "not supported"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"top_p": -1}, "top_p", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "cannot be empty"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"stream": "yes"}, "stream", "boolean"),
    ],
)
def test_bad_requests_are_400_and_name_the_field(
    client: openai.OpenAI, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(client, "red", **options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_all_problems_of_a_request_are_told_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'temperature'.*'seed'.*'messages'"):
        ask(client, "red", messages=[], temperature=3, seed="x")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_not_trimmed(client: openai.OpenAI, stream: bool) -> None:
    messages = [{"role": "user", "content": "a" * 600}]
    for options in ({"messages": messages}, {"messages": messages, "max_tokens": None}, {"max_tokens": 500}):
        with pytest.raises(openai.BadRequestError, match="512") as caught:
            ask(client, "red", stream=stream, **options)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"model": "red", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * (16 * 2**20 + 1), "application/json", 413),
    ],
)
def test_broken_bodies_get_openais_error_body(url: str, body: bytes, content_type: str, status: int) -> None:
    response = httpx.post(f"{url}/chat/completions", content=body, headers={"content-type": content_type})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_routes_that_are_not_there(url: str) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/chat/completions", 405)):
        response = httpx.request(method, url + path)
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"host": "127.0.0.1.evil.example:80"}, {"origin": "https://evil.example"}]
)
def test_web_pages_of_other_sites_are_refused(url: str, headers: dict[str, str]) -> None:
    response = httpx.get(f"{url}/models", headers=headers)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden_host"


def test_pages_of_this_machine_are_answered(url: str) -> None:
    assert httpx.get(f"{url}/models", headers={"host": "localhost:1", "origin": "http://[::1]:3"}).status_code == 200


def test_with_a_key_every_request_must_carry_it(served: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "s3cret")
    with running(create_app(served)) as url:
        assert httpx.get(f"{url}/models").status_code == 401
        assert httpx.get(url.removesuffix("/v1") + "/healthz").status_code == 200
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=url, api_key="wrong").models.list()
        assert caught.value.code == "invalid_api_key"
        assert len(openai.OpenAI(base_url=url, api_key="s3cret").models.list().data) == 3
        other_host = {"authorization": "Bearer s3cret", "host": "models.example"}
        assert httpx.get(f"{url}/models", headers=other_host).status_code == 200
