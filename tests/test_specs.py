"""The line that names a contender: every form, back and forth, and what is said of one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.contender import FewShotContender, Layer, Parts, Passage, PromptedContender, RetrievalContender, layers
from tunesmith.errors import InputError
from tunesmith.remote import RemoteOptions
from tunesmith.specs import Spec, parse_spec, put_layers, remote_contender

URL = "http://localhost:8000/v1#m"

paths = st.from_regex(r"[a-zA-Z0-9_./\- ]{0,12}[a-zA-Z0-9_/\-]", fullmatch=True)
numbers = st.floats(0.001, 1e6)
options = st.builds(
    RemoteOptions,
    key_env=st.sampled_from(["", "MY_KEY"]),
    concurrency=st.integers(1, 64),
    rpm=numbers,
    timeout_s=numbers,
    retries=st.integers(0, 9),
    prompt_price=st.just(0.15),
    completion_price=numbers,
    seed=st.none() | st.integers(0, 99),
)
targets = st.tuples(st.sampled_from(["base", "adapter"]), paths, st.just(RemoteOptions()))
servers = st.tuples(st.just("url"), st.sampled_from([URL, "https://h/v1?version=2#org/model-7b"]), options)
specs = st.builds(
    lambda head, prompt, shots, rag, passages: Spec(
        *head, prompt, *shots, rag=rag, passages=passages if rag else Spec("base", "x").passages
    ),
    targets | servers,
    st.just("") | paths,
    st.just((0, False)) | st.tuples(st.integers(1, 64), st.booleans()),
    st.just("") | paths,
    st.integers(1, 20),
)


@settings(max_examples=80)
@given(specs)
def test_a_spec_written_and_read_is_the_same(spec: Spec) -> None:
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("line", "spec"),
    [
        ("base:m", Spec("base", "m")),
        ("base:m+prompt:a b.txt", Spec("base", "m", prompt="a b.txt")),
        ("fewshot:m:4", Spec("base", "m", shots=4)),
        ("fewshot:m:4:nearest", Spec("base", "m", shots=4, nearest=True)),
        ("fewshot:adapter:runs/x:2", Spec("adapter", "runs/x", shots=2)),
        (f"fewshot:url:{URL}:3", Spec("url", URL, shots=3)),
        ("rag:m:docs/", Spec("base", "m", rag="docs/")),
        ("rag:m:docs?k=7", Spec("base", "m", rag="docs", passages=7)),
        ("adapter:runs/x+rag:docs+prompt:p.txt", Spec("adapter", "runs/x", prompt="p.txt", rag="docs")),
        (f"url:{URL}?rpm=60&retries=2", Spec("url", URL, RemoteOptions(rpm=60, retries=2))),
        (f"url:{URL}+fewshot:2", Spec("url", URL, shots=2)),
    ],
)
def test_every_form_of_the_guide_is_read(line: str, spec: Spec) -> None:
    assert parse_spec(line) == spec


@pytest.mark.parametrize(
    ("line", "todo"),
    [
        ("bse:m", "Did you mean base:MODEL?"),
        ("llama", "Write one of: base:MODEL"),
        ("base:", "Write base:MODEL."),
        ("url:localhost#m", "Write url:http://host:port/v1#model"),
        ("url:http://h/v1", "Write url:http://host:port/v1#model"),
        (f"url:{URL}?rmp=6", "Did you mean rpm?"),
        (f"url:{URL}?rpm=fast", "rpm is 'fast': give a number."),
        ("base:m+promt:f", "Did you mean +prompt:?"),
        ("base:m+prompt:", "Write +prompt:FILE."),
        ("fewshot:m", "Write fewshot:MODEL:4"),
        ("fewshot:m:0", "Write fewshot:MODEL:4"),
        ("fewshot:m:4:nearst", "Write fewshot:MODEL:4"),
        ("rag:m", "Write one of"),
        ("fewshot:m:4+fewshot:5", "It says +fewshot: twice"),
        ("base:m+rag:a+rag:b", "It says +rag: twice"),
    ],
)
def test_a_line_that_cannot_be_read_is_answered_with_the_nearest_form(line: str, todo: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(line)
    assert repr(line) in caught.value.message and todo in caught.value.todo


def test_layers_are_put_around_a_model_that_is_kept(tmp_path: Path) -> None:
    prompt = tmp_path / "p.txt"
    prompt.write_text("Be brief.\n")
    kept: list[object] = []
    parts = Parts(
        [label_example("q", "a")],
        lambda texts: lambda question, k: [0],
        lambda docs, k: lambda question: [Passage(f"{docs} {k}", "s", 1.0)],
        lambda model: kept.append(model) or model,
    )
    model = Fixed("m", [])
    spec = parse_spec(f"base:m+prompt:{prompt}+fewshot:1:nearest+rag:docs?k=2")
    built = put_layers(model, spec, name="all", parts=parts)
    assert [type(one) for one in layers(built)] == [FewShotContender, RetrievalContender, PromptedContender, Fixed]
    assert kept == [model] and built.name == "all"
    assert isinstance(built, Layer)
    shown = built.inner.show([label_example("q", "a").prompt[-1]], 5)  # type: ignore[attr-defined]
    assert [passage.text for passage in shown.passages] == ["docs 2"]


@pytest.mark.parametrize(
    ("line", "what"),
    [("base:m+fewshot:1", "no examples"), ("base:m+rag:x", "documents"), ("base:m+prompt:/no/such", "cannot be read")],
)
def test_parts_that_are_missing_are_named(line: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        put_layers(Fixed("m", []), parse_spec(line), name=line, parts=Parts())


def test_a_server_is_made_as_its_line_says() -> None:
    made = remote_contender(parse_spec(f"url:{URL}?concurrency=3"))
    assert (made.url, made.model, made.concurrency) == ("http://localhost:8000/v1", "m", 3)
