"""What OpenAI's client may ask beside text: several replies, log-probabilities, penalties, JSON, tools, completions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import CHATML
from tunesmith.serve import tools as tools_of
from tunesmith.serve.app import create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import running
from tunesmith.serve.tokens import TokenBytes

HELLO: list[Any] = [{"role": "user", "content": "My card is lost, case 7."}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "red", "messages": HELLO, "max_tokens": 24, **options})


def test_several_replies_each_with_its_own_seed(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 4}
    completion = ask(client, **options)
    texts = [choice.message.content for choice in completion.choices]
    assert [choice.index for choice in completion.choices] == [0, 1, 2] and len(set(texts)) == 3
    single = ask(client, temperature=1.5, seed=4)
    assert single.choices[0].message.content == texts[0]
    assert completion.usage.prompt_tokens == single.usage.prompt_tokens
    assert completion.usage.completion_tokens > single.usage.completion_tokens
    streamed = dict.fromkeys(range(3), "")
    for chunk in ask(client, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


def test_log_probabilities_are_the_models_own_whatever_is_asked_beside(client: openai.OpenAI) -> None:
    plain = ask(client, logprobs=True, top_logprobs=3).choices[0]
    told = plain.logprobs.content
    assert b"".join(bytes(token.bytes) for token in told).decode(errors="replace") == plain.message.content
    for token in told:
        assert token.logprob == token.top_logprobs[0].logprob <= 0 and len(token.top_logprobs) == 3
        assert token.token == bytes(token.bytes).decode(errors="replace")
    biased = ask(client, logprobs=True, logit_bias={"100": 100, "2": -100}).choices[0].logprobs.content
    assert len(biased) == 24 and all(token.top_logprobs == [] for token in biased)
    assert biased[0].logprob < told[0].logprob
    chunks = [chunk for chunk in ask(client, logprobs=True, top_logprobs=3, stream=True) if chunk.choices]
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert streamed == told


def test_penalties_change_a_greedy_reply(client: openai.OpenAI) -> None:
    plain = ask(client, max_tokens=60).choices[0].message.content
    for name in ("presence_penalty", "frequency_penalty"):
        assert ask(client, max_tokens=60, **{name: 2.0}).choices[0].message.content != plain


SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["card", "refund"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}


def test_a_reply_keeps_to_a_json_schema_in_stream_and_whole(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    form: Any = {"type": "json_schema", "json_schema": {"name": "label", "schema": SCHEMA, "strict": True}}
    for options in ({}, {"temperature": 1.5, "seed": 1}):
        completion = ask(client, response_format=form, max_tokens=60, **options)
        found = json.loads(completion.choices[0].message.content)
        assert found["label"] in ("card", "refund") and found["sure"] in (True, False) and len(found) == 2
        assert completion.choices[0].finish_reason == "stop"
        streamed = ask(client, response_format=form, max_tokens=60, stream=True, **options)
        assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in streamed)) == found
    some = ask(client, response_format={"type": "json_object"}, max_tokens=20).choices[0].message.content
    assert some.lstrip().startswith("{")
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError, match="schema") as caught:
        ask(client, response_format=bad)
    assert caught.value.param == "response_format"


def test_without_the_package_a_schema_is_refused_with_the_command(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError, match="pip install llguidance") as caught:
        ask(client, response_format={"type": "json_object"})
    assert caught.value.code == "unsupported_parameter"


def test_a_template_without_tools_refuses_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="template leaves out tools"):
        ask(client, tools=[WEATHER])
    assert ask(client, tools=[WEATHER], tool_choice="none").choices[0].message.content


@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>', "", ['{"city": "Köln"}']),
        ('Let me look.\n<tool_call>{"name": "get_weather", "arguments": {}}', "Let me look.", ["{}"]),
        ('{"name": "get_weather", "parameters": {"city": "x"}}', "", ['{"city": "x"}']),
        ('[{"name": "get_weather", "arguments": "{}"}, {"name": "get_weather", "arguments": {}}]', "", ["{}", "{}"]),
        ('[TOOL_CALLS][{"name": "get_weather", "arguments": {"a": 1}}]', "", ['{"a": 1}']),
        ('{"name": "other", "arguments": {}}', None, []),
        ('{"name": "get_weather", "arguments": "x"}', None, []),
        ("It rains.", None, []),
        ("<tool_call>{broken</tool_call>", None, []),
        ("[" * 100_000, None, []),
        ("[]", None, []),
    ],
)
def test_calls_are_read_where_they_can_be(text: str, words: str | None, calls: list[str]) -> None:
    found, read = tools_of.read_calls(text, [WEATHER])
    assert found == (text if words is None else words)
    assert [call.arguments for call in read] == calls
    assert all(call.name == "get_weather" and call.id and call.id.startswith("call_") for call in read)


WITH_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML.replace(
    "{{ '<|im_start|>' + message['role']",
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '<|im_start|>' + message['role']",
)


@pytest.fixture
def tool_client(tiny_base: Path, tmp_path: Path) -> Iterator[openai.OpenAI]:
    """A base whose template knows tools."""
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").write_text(WITH_TOOLS)
    with running(create_app(ServedModels.load({"red": str(folder)}, precision="float32"))) as url:
        yield openai.OpenAI(base_url=url, api_key="x", max_retries=0)


def test_calls_come_back_as_tool_calls_in_stream_and_whole(
    tool_client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ask(tool_client, tools=[WEATHER]).choices[0].message.content
    assert text and text != ask(tool_client).choices[0].message.content, "the prompt tells of them"
    streamed = ask(tool_client, tools=[WEATHER], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text
    call = tools_of.read_calls('{"name": "get_weather", "arguments": {"city": "Bonn"}}', [WEATHER])
    monkeypatch.setattr("tunesmith.serve.wire.chat.read_calls", lambda text, tools: call)  # no random model calls one
    choice = ask(tool_client, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls[0].function.name == "get_weather"
    chunks = list(ask(tool_client, tools=[WEATHER], stream=True))
    found = [chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices[0].delta.tool_calls]
    assert json.loads(found[0][0].function.arguments) == {"city": "Bonn"} and found[0][0].index == 0
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_completions_go_on_with_a_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "red", "max_tokens": 8}
    one = client.completions.create(prompt="My card", **options)
    assert one.object == "text_completion" and one.usage and one.usage.prompt_tokens == len("My card")
    assert one.usage.completion_tokens <= 8
    ids = [token + 3 - 3 for token in _ids(client, "My card")]
    by_ids = client.completions.create(prompt=ids, **options)
    assert by_ids.choices[0].text == one.choices[0].text
    several = client.completions.create(prompt=["My card", "Refund"], n=2, echo=True, **options)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in several.choices[:2]] == ["My card" + one.choices[0].text] * 2
    assert all(choice.text.startswith("Refund") for choice in several.choices[2:])
    assert several.usage and several.usage.prompt_tokens == len("My card") + len("Refund")
    told = client.completions.create(prompt="My card", logprobs=2, **options).choices[0].logprobs
    assert told and told.tokens and told.top_logprobs and told.text_offset == list(range(len(told.tokens)))
    streamed = client.completions.create(prompt="My card", stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def _ids(client: openai.OpenAI, text: str) -> list[int]:
    """The byte tokenizer's: its alphabet in order, after three special tokens."""
    from tunesmith.serve.tokens import _alphabet

    bytes_of = {byte: place for place, (char, byte) in enumerate(sorted(_alphabet().items()))}
    return [3 + bytes_of[byte] for byte in text.encode()]


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "none of them empty"),
        ({"prompt": []}, "prompt", "1 to 128"),
        ({"prompt": [1, "a"]}, "prompt", "a text"),
        ({"prompt": [[1, True]]}, "prompt", "a text"),
        ({"prompt": [999]}, "prompt", "no token 999"),
        ({"suffix": "x"}, "suffix", "not trained to fill a gap"),
        ({"best_of": 1, "n": 2}, "best_of", "fewer than 'n'"),
        ({"best_of": 3, "stream": True}, "best_of", "cannot be streamed"),
        ({"best_of": 33}, "best_of", "less than or equal to 32"),
        ({"max_tokens": 0}, "max_tokens", "makes no text"),
        ({"max_tokens": 0, "echo": True, "prompt": [999]}, "prompt", "no token 999"),
        ({"max_tokens": 0, "echo": True, "logprobs": 1, "prompt": "x" * 600}, "messages", "512 tokens"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"prompt": "x" * 600}, "messages", "512 tokens"),
    ],
)
def test_bad_completions_are_400_and_name_the_field(
    client: openai.OpenAI, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.completions.create(**{"model": "red", "prompt": "x", **options})
    assert caught.value.param == param


def test_a_busy_server_says_when_to_come_back(served: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.get("red").engine.scheduler, "max_waiting", 0)
    with running(create_app(served)) as url:
        for stream in (False, True):
            body = {"model": "red", "messages": HELLO, "stream": stream}
            response = httpx.post(f"{url}/chat/completions", json=body)
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "rate_limit_exceeded"


def test_ready_means_a_token_was_made(url: str) -> None:
    assert httpx.get(url.removesuffix("/v1") + "/readyz").json() == {"status": "ready"}


class Pieces:
    """A tokenizer of the SentencePiece kind."""

    added_tokens_decoder: dict[int, Any] = {}

    def __init__(self) -> None:
        import tokenizers

        vocabulary = {"<unk>": 0, "\u2581card": 1, "<0xE2>": 2, "s": 3}
        self.backend_tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
        self.backend_tokenizer.decoder = tokenizers.decoders.Metaspace()


def test_bytes_of_tokens_that_are_pieces_of_text() -> None:
    known = TokenBytes(Pieces())
    assert [known.of(token) for token in (1, 2, 3, 99)] == [b" card", b"\xe2", b"s", b""]
