"""Calls that a reply must make, or may make one of: by a grammar in the form that the template writes calls in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from tests.conftest import CHATML
from tunesmith.render import Renderer
from tunesmith.serve.app import create_app
from tunesmith.serve.grammar import Calls
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import running
from tunesmith.serve.tools import CallForm, call_form

pytest.importorskip("llguidance")

HELLO: list[Any] = [{"role": "user", "content": "What is the weather in Bonn?"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Köln"]}}, "required": ["city"]}
CITY |= {"additionalProperties": False}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
BOTH = [WEATHER, CLOCK]
ONE_CALL = '{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}'
HEAD = "{% if tools %}{{ tools | tojson }}{% endif %}"


def template(calls: str) -> str:
    """ChatML with tools before the conversation, and the turn of calls written so."""
    turn = "{{ '<|im_start|>' + message['role'] + '\n' }}{{ message['content'] or '' }}"
    turn += "{% if message.tool_calls %}" + calls + "{% endif %}{{ '<|im_end|>' + '\n' }}"
    return HEAD + "{% for message in messages %}" + turn + CHATML[CHATML.index("{% endfor %}") :]


EACH = "{% for call in message.tool_calls %}"
TAGGED = template(
    EACH + "{% if not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n" + ONE_CALL + "\n</tool_call>{% endfor %}"
)
BARE = template("{% set call = message.tool_calls[0] %}" + ONE_CALL.replace('"arguments"', '"parameters"'))
LISTED = template(
    "<|endoftext|>[" + EACH + ONE_CALL + "{% if not loop.last %}, {% endif %}{% endfor %}]"
)  # a special token opens it
ODD = template(EACH + "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}")


def base_with(text: str, tiny_base: Path, folder: Path) -> Path:
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").write_text(text)
    return folder


def renderer_with(text: str, tiny_base: Path, add: Sequence[Any] = ()) -> Renderer:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(list(add))
    tokenizer.chat_template = text
    return Renderer(tokenizer)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (TAGGED, CallForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>",
                          '}\n</tool_call>\n<tool_call>\n{"name": "', True)),
        (BARE, CallForm('{"name": "', '", "parameters": ', "}", None, False)),
        (LISTED, CallForm('<|endoftext|>[{"name": "', '", "arguments": ', "}]", '}, {"name": "', False)),
        (ODD, None),
        (CHATML, None),
    ],
)  # fmt: skip
def test_the_form_of_calls_is_what_the_template_writes(text: str, form: CallForm | None, tiny_base: Path) -> None:
    assert call_form(renderer_with(text, tiny_base)) == form


@pytest.fixture(scope="module")
def tooled(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A base for each template."""
    folder = tmp_path_factory.mktemp("tooled")
    texts = {"tagged": TAGGED, "bare": BARE, "listed": LISTED, "odd": ODD}
    targets = {name: str(base_with(text, tiny_base, folder / name)) for name, text in texts.items()}
    with running(create_app(ServedModels.load(targets, precision="float32"))) as url:
        yield openai.OpenAI(base_url=url, api_key="x", max_retries=0)


def ask(client: openai.OpenAI, model: str = "tagged", **options: Any) -> Any:
    known = {"model": model, "messages": HELLO, "max_tokens": 90, "tools": BOTH, "temperature": 1, "seed": 3}
    return client.chat.completions.create(**known | options)


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_allowed_tools_are_as_if_there_were_no_others(tooled: openai.OpenAI) -> None:
    some = ask(tooled, tool_choice=allowed("required", "get_weather"), max_tokens=200)
    only = ask(tooled, tool_choice="required", tools=[WEATHER], max_tokens=200)
    calls = [[call.function for call in made.choices[0].message.tool_calls] for made in (some, only)]
    assert calls[0] == calls[1] and {call.name for call in calls[0]} == {"get_weather"} and some.usage == only.usage
    free, alone = ask(tooled, tool_choice=allowed("auto", "get_time")), ask(tooled, tools=[CLOCK])
    assert free.choices[0].message.content == alone.choices[0].message.content


@pytest.mark.parametrize("model", ["tagged", "bare", "listed"])
def test_a_named_function_is_called_with_arguments_of_its_schema(tooled: openai.OpenAI, model: str) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    made = ask(tooled, model, tool_choice=choice).choices[0]
    (call,) = made.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in ("Bonn", "Köln")
    assert made.finish_reason == "tool_calls" and made.message.content is None
    streamed = [chunk.choices[0].delta for chunk in ask(tooled, model, tool_choice=choice, stream=True)]
    (call,) = [call for delta in streamed for call in delta.tool_calls or ()]
    assert call.function.name == "get_weather" and not any(delta.content for delta in streamed)


@pytest.mark.parametrize(
    "model", ["tagged", pytest.param("bare", marks=pytest.mark.slow), pytest.param("listed", marks=pytest.mark.slow)]
)
def test_what_must_call_calls_and_alone_where_it_is_asked_to(tooled: openai.OpenAI, model: str) -> None:
    for seed in range(2):
        (only,) = ask(tooled, model, tool_choice="required", parallel_tool_calls=False, seed=seed).choices
        assert len(only.message.tool_calls) == 1
        some = ask(tooled, model, tool_choice="required", seed=seed, max_tokens=200).choices[0]
        if some.finish_reason != "length":
            assert {call.function.name for call in some.message.tool_calls} <= {"get_weather", "get_time"}
        for call in only.message.tool_calls:
            given = json.loads(call.function.arguments)
            assert given == {} if call.function.name == "get_time" else given["city"]


def test_where_one_call_is_the_most_a_text_may_come_and_a_second_call_not(tooled: openai.OpenAI) -> None:
    for model in ("tagged", "bare", "listed"):
        for seed in range(2):
            made = ask(tooled, model, parallel_tool_calls=False, seed=seed, max_tokens=40).choices[0]
            assert made.message.content or len(made.message.tool_calls) == 1


@pytest.mark.parametrize("added", ["", "plain", "special"])
def test_the_grammar_lets_pass_what_can_be_read_and_nothing_else(added: str, tiny_base: Path) -> None:
    """Also where <tool_call> is a token of its own, which llguidance takes for a special one either way."""
    from tokenizers import AddedToken

    marks = ("<tool_call>", "</tool_call>") if added else ()
    add = [AddedToken(text, special=added == "special", normalized=False) for text in marks]
    renderer = renderer_with(TAGGED, tiny_base, add)
    tokenizer = renderer.tokenizer
    head = SimpleNamespace(out_features=len(tokenizer))
    base: Any = SimpleNamespace(renderer=renderer, sha256=f"added {added}", name="tiny")
    base.model = SimpleNamespace(get_output_embeddings=lambda: head)
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'

    def kept(written: str, **options: Any) -> bool:
        """Whether the grammar lets a model write this and end."""
        grammar = Calls(tuple(BOTH), "tools", **options)(base)
        ids = tokenizer.backend_tokenizer.encode(written, add_special_tokens=False).ids
        for token in [*ids, tokenizer.eos_token_id]:
            if not grammar.allowed()[token // 8] >> (token % 8) & 1:
                return False
            grammar.accept(token)
        return True

    seen = added != "special"  # by who reads the reply: a special token leaves no text
    text: dict[str, Any] = {"text": True, "most": 1}
    assert kept("It rains.", **text) and kept(call, **text) and kept(f"Let me look.\n{call}", **text) == seen
    assert not kept(f"{call}\n{call}", **text) and not kept("<tool_call>x", **text)
    assert kept(call) and kept(f"{call}\n{call}") == seen and not kept("It rains.") and not kept("")
    assert not kept(f"{call}\n{call}", most=1) and not kept(call.replace("get_time", "other"))
    answer: dict[str, Any] = {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    assert kept('{"a": 1}', **answer) and kept(call, **answer) and not kept("It rains.", **answer)


def test_with_a_format_the_reply_is_calls_or_json(tooled: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
    for model in ("tagged", "listed"):
        for seed in range(2):
            made = ask(tooled, model, response_format=form, seed=seed).choices[0]
            if not made.message.tool_calls and made.finish_reason == "stop":
                assert json.loads(made.message.content)["city"] in ("Bonn", "Köln")
        forced = ask(tooled, model, response_format=form, tool_choice="required", parallel_tool_calls=False)
        assert forced.choices[0].message.tool_calls


@pytest.mark.parametrize(
    ("model", "options", "param", "words"),
    [
        ("odd", {"tool_choice": "required"}, "tool_choice", "in no form that is known"),
        ("odd", {"parallel_tool_calls": False}, "parallel_tool_calls", "in no form that is known"),
        ("bare", {"response_format": {"type": "json_object"}}, "response_format", "could not be told apart"),
        ("tagged", {"tool_choice": "required", "tools": []}, "tool_choice", "no 'tools' to call"),
        ("tagged", {"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", "not among"),
        ("tagged", {"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "should be"),
        ("tagged", {"tool_choice": allowed("none", "get_time")}, "tool_choice", "should be"),
        ("tagged", {"tool_choice": allowed("auto")}, "tool_choice", "should be"),
        ("tagged", {"tool_choice": allowed("auto", "get_time", "other")}, "tool_choice", "'other', which is not among"),
        ("tagged", {"tool_choice": "always"}, "tool_choice", "should be"),
        ("tagged", {"parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
        ("tagged", {"tool_choice": "required", "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
        ]}, "tools", "no schema of an object"),
        ("tagged", {"tool_choice": "required", "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/nowhere"}}}
        ]}, "tool_choice", "cannot be kept to"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_by_name(
    tooled: openai.OpenAI, model: str, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(tooled, model, **options)
    assert caught.value.param == param
