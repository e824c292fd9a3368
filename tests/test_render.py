"""Templates: exactly the answers are trained, prompts are what training saw, untrue templates are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import CHATML, DEFAULT_SYSTEM, FAMILIES, SPECIAL_TOKENS
from tunesmith.chat import Example, Message, parse_row
from tunesmith.render import Rendered, Renderer, RenderError

USER, END = "<|im_start|>", "<|im_end|>"

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no system') }}"
    "{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
TRIMMED = CHATML.replace("message['content'] +", "message['content'] | trim +")
NO_SYSTEM = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


def with_template(tokenizer: Any, template: str | None, **changes: Any) -> Any:
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def talk(*contents: str, system: str | None = None, untrained: Sequence[int] = ()) -> Example:
    """User and assistant turns in order; `untrained` are numbers of answers with weight 0."""
    messages = [] if system is None else [Message("system", system)]
    for index, content in enumerate(contents):
        answer = index % 2 == 1
        messages.append(Message("assistant" if answer else "user", content, answer and index // 2 not in untrained))
    return Example(tuple(messages))


def trained_ids(rendered: Rendered) -> list[list[int]]:
    """The runs of trained ids."""
    runs: list[list[int]] = []
    before = False
    for token, trained in zip(rendered.ids, rendered.trained, strict=True):
        if trained and not before:
            runs.append([])
        if trained:
            runs[-1].append(token)
        before = trained
    return runs


def spans(rendered: Rendered, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in trained_ids(rendered)]


def by_hand(tokenizer: Any, example: Example) -> tuple[list[int], list[bool]]:
    """ChatML written out turn by turn with the bytes of each content: what `render` must give, without a template."""
    start, end = tokenizer.convert_tokens_to_ids([USER, END])
    byte_ids = {chr_: index for chr_, index in tokenizer.get_vocab().items() if index > 2}
    alphabet = _byte_alphabet()

    def bytes_of(text: str) -> list[int]:
        return [byte_ids[alphabet[byte]] for byte in text.encode()]

    ids: list[int] = []
    trained: list[bool] = []

    def put(new: list[int], flag: bool) -> None:
        ids.extend(new)
        trained.extend([flag] * len(new))

    turns = list(example.messages)
    if turns[0].role != "system":
        turns.insert(0, Message("system", DEFAULT_SYSTEM))
    for turn in turns:
        put([start, *bytes_of(f"{turn.role}\n")], False)
        put([*bytes_of(turn.content), end], turn.trained)
        put(bytes_of("\n"), False)
    last = max(index for index, flag in enumerate(trained) if flag) + 1
    return ids[:last], trained[:last]


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's table of bytes as printable characters (openai/gpt-2, encoder.py)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in kept}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + offset)
    return table


CONTENT = (
    st.lists(
        st.sampled_from(
            [*SPECIAL_TOKENS, "\n", "  ", "<|im_", "end|>", "assistant\n", "\U000f0000", "Grüße 👋", "</s>"]
        )
        | st.text(st.characters(codec="utf-8"), max_size=6),
        min_size=1,
        max_size=5,
    )
    .map("".join)
    .filter(lambda text: bool(text.strip()))
)


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    num_pairs = draw(st.integers(1, 3))
    contents = draw(st.lists(CONTENT, min_size=2 * num_pairs, max_size=2 * num_pairs))
    untrained = draw(st.lists(st.integers(0, num_pairs - 1), max_size=num_pairs - 1)) if num_pairs > 1 else []
    if set(untrained) == set(range(num_pairs)):
        untrained = []
    return talk(*contents, system=draw(st.none() | CONTENT), untrained=untrained)


@settings(max_examples=100, deadline=None)
@given(conversations())
def test_ids_and_mask_equal_the_conversation_written_out_by_hand(example: Example) -> None:
    renderer, tokenizer = _chatml()
    rendered = renderer.render(example)
    assert (list(rendered.ids), list(rendered.trained)) == by_hand(tokenizer, example)
    answers = [message.content + END for message in example.messages if message.trained]
    assert spans(rendered, tokenizer) == answers
    assert rendered.num_trained == sum(map(len, trained_ids(rendered)))


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_the_prompt_is_the_ids_before_the_answer(example: Example) -> None:
    renderer, tokenizer = _chatml()
    for index, message in enumerate(example.messages):
        if message.trained:
            rendered = renderer.render(Example(example.messages[: index + 1]))
            own = len(tokenizer.encode(END)) + len(renderer._plain_backend.encode(message.content).ids)
            assert renderer.prompt(example.messages[:index]) == list(rendered.ids[:-own])


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_control_tokens_are_the_templates_own_whatever_a_person_writes(example: Example) -> None:
    renderer, tokenizer = _chatml()
    whole = Example(tuple(Message(m.role, m.content, m.role == "assistant") for m in example.messages))
    ids = renderer.render(whole).ids
    num_turns = len(whole.messages) + (whole.messages[0].role != "system")
    counts = {text: ids.count(tokenizer.convert_tokens_to_ids(text)) for text in SPECIAL_TOKENS}
    assert counts == {USER: num_turns, END: num_turns, "<|endoftext|>": 0}


TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(("system", "developer", "user", "assistant")), "content": CONTENT},
    optional={"weight": st.sampled_from((0, 1))},
)


@settings(max_examples=200, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=5))
def test_what_the_parser_accepts_is_rendered_with_its_answers_trained(turns: list[dict[str, Any]]) -> None:
    example, problems = parse_row({"messages": turns})
    assert (example is None) == bool(problems)
    if example:
        renderer, tokenizer = _chatml()
        answers = [message.content + END for message in example.messages if message.trained]
        assert spans(renderer.render(example), tokenizer) == answers
        assert parse_row(json.loads(example.to_json())) == (example, [])


_CACHE: dict[str, Any] = {}


def _chatml() -> tuple[Renderer, Any]:
    """For property tests, which may not take function fixtures."""
    return _CACHE["renderer"], _CACHE["tokenizer"]


@pytest.fixture(scope="module", autouse=True)
def _fill_cache(tokenizer: Any, renderer: Renderer) -> None:
    _CACHE.update(tokenizer=tokenizer, renderer=renderer)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_equal_the_stock_template_up_to_the_last_end_of_turn(name: str, tiny_family: Any, tiny_rows: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_family(name))
    renderer = Renderer(tokenizer)
    for row in tiny_rows(6):
        messages = tuple(Message(**turn, trained=turn["role"] == "assistant") for turn in row["messages"])
        stock = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        last = len(stock) - stock[::-1].index(2)
        assert list(renderer.render(Example(messages)).ids) == stock[:last]
        opened = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=True)
        assert renderer.prompt(messages[:-1]) == opened["input_ids"]


def test_what_follows_the_last_trained_turn_is_cut_off(renderer: Renderer, tokenizer: Any) -> None:
    rendered = renderer.render(talk("a", "b", "c", "d", untrained=[1]))
    assert spans(rendered, tokenizer) == ["b" + END]
    assert rendered.trained[-1]


# -- templates of other kinds -----------------------------------------------------------------------------------


def test_a_mistral_like_template_trains_the_answer_with_its_space_and_has_one_bos(tokenizer: Any) -> None:
    odd = with_template(tokenizer, MISTRAL, bos_token="<|endoftext|>")
    renderer = Renderer(odd)
    rendered = renderer.render(talk("x", "answer", "y", "more"))
    assert odd.decode(rendered.ids) == "<|endoftext|>[INST] x [/INST] answer<|im_end|>[INST] y [/INST] more<|im_end|>"
    assert spans(rendered, odd) == [" answer" + END, " more" + END]
    assert rendered.ids.count(0) == 1
    assert odd.decode(renderer.prompt([Message("user", "x")])) == "<|endoftext|>[INST] x [/INST]"


def test_a_template_that_refuses_a_role_says_so(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, MISTRAL))
    with pytest.raises(RenderError, match="refuses the turns system, user, assistant: no system"):
        renderer.render(talk("x", "y", system="s"))


def test_a_thinking_template_works_once_thinking_is_off(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, QWEN3))
    example = talk("x", "answer")
    rendered = renderer.render(example)
    assert spans(rendered, tokenizer) == ["answer" + END]
    assert "<think>\n\n</think>\n\nanswer" in tokenizer.decode(rendered.ids)
    prompt = tokenizer.decode(renderer.prompt(example.prompt))
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_thinking_template_refuses_a_trained_turn_that_it_rewrites_and_takes_it_untrained(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, QWEN3))
    with pytest.raises(RenderError, match="not prefix-preserving"):
        renderer.render(talk("a", "b", "c", "d"))
    rendered = renderer.render(talk("a", "b", "c", "d", untrained=[0]))
    assert spans(rendered, tokenizer) == ["d" + END]


def test_a_template_that_trims_contents_trains_the_trimmed_answer(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, TRIMMED))
    assert spans(renderer.render(talk(" a ", "\n answer  ")), tokenizer) == ["answer" + END]


def test_a_developer_turn_is_a_system_turn_where_the_template_knows_none(renderer: Renderer, tokenizer: Any) -> None:
    rest = talk("a", "b").messages
    developer = renderer.render(Example((Message("developer", "d"), *rest)))
    assert developer == renderer.render(Example((Message("system", "d"), *rest)))
    named = Renderer(with_template(tokenizer, NO_SYSTEM + "{# developer #}"))
    assert "developer\nd" in tokenizer.decode(named.render(Example((Message("developer", "d"), *rest))).ids)


def test_a_tokenizer_that_adds_a_bos_does_not_add_a_second_one(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    odd = with_template(tokenizer, "{{ bos_token }}" + NO_SYSTEM, bos_token="<|endoftext|>")
    odd.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert odd("a")["input_ids"][0] == 0
    renderer = Renderer(odd)
    assert renderer.render(talk("a", "b", "c <|endoftext|>", "d")).ids.count(0) == 1
    assert renderer.prompt([Message("user", "a")]).count(0) == 1
    bare = with_template(tokenizer, NO_SYSTEM, bos_token="<|endoftext|>")
    assert Renderer(bare).render(talk("a", "b")).ids.count(0) == 0


def metaspace_tokenizer(scheme: str) -> Any:
    """Characters with a sentencepiece-like mark for a space, as in Mistral's and Phi-3's tokenizers."""
    import tokenizers
    import transformers

    tokens = ["<unk>", "<s>", "</s>", "▁", *map(chr, range(33, 127)), *(f"▁{chr(code)}" for code in range(97, 123))]
    merges = [("▁", chr(code)) for code in range(97, 123)]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme=scheme)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=MISTRAL
    )


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_tokenizer_that_marks_spaces_gives_the_stock_ids(scheme: str) -> None:
    tokenizer = metaspace_tokenizer(scheme)
    example = talk("where is it", "on its way", "thanks", "bye")
    stock = tokenizer.apply_chat_template([m.as_dict() for m in example.messages], return_dict=True)["input_ids"]
    rendered = Renderer(tokenizer).render(example)
    assert list(rendered.ids) == stock


# -- templates that must be refused -----------------------------------------------------------------------------

SHOUTS = CHATML.replace("message['content'] +", "message['content'] | upper +")
SIGNS = CHATML.replace("message['content'] +", "message['content'] + ' -- Bob' +")
COUNTS = "{{ messages | length }}" + CHATML
FORGETS = NO_SYSTEM.replace("in messages", "in messages[-2:]")
NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
END_AT_THE_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|im_end|>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template"),
        (SHOUTS, "does not write the answer 'On its way.' as it is"),
        (SIGNS, "does not write the answer"),
        (NO_END, "with an end-of-turn token after it"),
        (COUNTS, "not prefix-preserving"),
        ("{{ raise_exception('closed') }}", "refuses the turns user, assistant: closed"),
    ],
    ids=["none", "rewrites the answer", "adds to the answer", "no end of turn", "rewrites what went before", "raises"],
)
def test_a_template_that_cannot_be_trusted_is_refused_at_once(tokenizer: Any, template: str | None, words: str) -> None:
    with pytest.raises(RenderError, match=words):
        Renderer(with_template(tokenizer, template))


def test_a_template_that_forgets_earlier_turns_is_refused_for_the_rows_it_harms(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, FORGETS))
    assert spans(renderer.render(talk("a", "b")), tokenizer) == ["b" + END]
    with pytest.raises(RenderError, match="not prefix-preserving"):
        renderer.render(talk("a", "b", "c", "d"))


def test_the_start_of_the_next_turn_is_never_trained_as_an_end_of_turn(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, END_AT_THE_END))
    assert spans(renderer.render(talk("a", "b")), tokenizer) == ["b" + END]
    with pytest.raises(RenderError, match="end-of-turn token"):
        renderer.render(talk("a", "b", "c", "d"))


# -- tools and plain text ---------------------------------------------------------------------------------------

HERMES = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ONE_TURN_A_CALL = HERMES.replace("</tool_call>' }}{% endfor %}", "</tool_call><|im_end|>\n' }}{% endfor %}")
NAMES_ONLY = HERMES.replace("(call.function | tojson)", "call.function.name")
DEAF_TO_RESULTS = HERMES.replace("+ m.content }}", "+ (m.content if m.role != 'tool' else '') }}")
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def weather(arguments: str = '{"city":"Bern"}', *, tools: Any = (WEATHER,), result: str = "snow") -> Example:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "Weather in Bern?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
        {"role": "assistant", "content": "It snows."},
    ]
    example, problems = parse_row({"messages": turns, "tools": list(tools)})
    assert example, problems
    return example


def test_a_turn_that_calls_a_tool_is_trained_from_its_opening_to_its_end(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, HERMES))
    example = weather()
    rendered = renderer.render(example)
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>'
    assert spans(rendered, tokenizer) == [call + END, "It snows." + END]
    text = tokenizer.decode(rendered.ids)
    assert '"name": "get_weather", "parameters"' in text
    assert "tool\nsnow" in text
    prompt = renderer.prompt(example.messages[:1], tools=example.tools)
    assert prompt == list(rendered.ids[: len(prompt)])
    assert rendered.trained.index(True) == len(prompt)


@settings(max_examples=40, deadline=None)
@given(city=CONTENT, result=CONTENT)
def test_control_tokens_in_a_call_or_its_result_stay_text(city: str, result: str) -> None:
    _, tokenizer = _chatml()
    renderer = Renderer(with_template(tokenizer, HERMES))
    rendered = renderer.render(weather(json.dumps({"city": city}), result=result))
    assert rendered.ids.count(tokenizer.convert_tokens_to_ids(END)) == 5  # tools, user, call, result, answer
    call = spans(rendered, tokenizer)[0].removeprefix("<tool_call>").removesuffix("</tool_call>" + END)
    assert json.loads(call)["arguments"] == {"city": city}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHATML, "leaves out tools: 'get_weather'"),
        (ONE_TURN_A_CALL, "does not write the call of 'get_weather' whole, in one turn"),
        (NAMES_ONLY, "does not write the call of 'get_weather'"),
        (DEAF_TO_RESULTS, "leaves out tools: 'snow'"),
    ],
    ids=["no tools", "two turns", "no arguments", "no results"],
)
def test_a_template_that_leaves_out_tools_is_refused(tokenizer: Any, template: str, words: str) -> None:
    with pytest.raises(RenderError, match=words):
        Renderer(with_template(tokenizer, template)).render(weather())


def test_tools_that_only_the_calls_name_are_left_out(tokenizer: Any) -> None:
    deaf = HERMES.replace("{% if tools %}", "{% if false %}")
    with pytest.raises(RenderError, match="leaves out tools: 'get_weather'"):
        Renderer(with_template(tokenizer, deaf)).render(weather())
    assert spans(Renderer(with_template(tokenizer, deaf)).render(weather(tools=())), tokenizer)


def test_a_plain_text_is_trained_without_a_template_up_to_the_end_of_text(renderer: Renderer, tokenizer: Any) -> None:
    example, _ = parse_row({"text": "Once <|im_end|> upon\n a time."})
    assert example
    rendered = renderer.render(example)
    assert all(rendered.trained)
    assert tokenizer.decode(rendered.ids) == "Once <|im_end|> upon\n a time." + tokenizer.eos_token
    assert [rendered.ids.count(stop) for stop in renderer.stop_ids] == [1] * len(renderer.stop_ids)
