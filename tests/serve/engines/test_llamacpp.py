"""llama.cpp on exported files answers as our own engine does: the same ids, with and without adapters, many at once."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tunesmith.chat import Message
from tunesmith.cli.engine_choice import GgufFiles, engine_opener
from tunesmith.errors import InputError, ServeError
from tunesmith.model import load_base
from tunesmith.sampling import Sampling
from tunesmith.serve.engines.llamacpp import LlamaCpp, open_llamacpp
from tunesmith.serve.models import ServedModels
from tunesmith.serve.reply import Ask, Choice, Piece
from tunesmith.serve.wire.errors import RequestError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp is not installed: pip install xllamacpp"
    ),
]

TEXTS = ("My card is lost, case 7.", "I want my money back!", "Ünïcödé \U0001f600 and a very long question, again")
TOLD = Sampling(top_logprobs=3)


@pytest.fixture(scope="module")
def llama(targets: dict[str, str]) -> Iterator[ServedModels]:
    models = ServedModels.load(targets, precision="float32", open_engine=engine_opener("llamacpp"))
    yield models
    for engine in models.engines:
        engine.stop()


def asked(text: str, **options: object) -> Ask:
    return replace(Ask((Message("user", text),), max_new_tokens=24, sampling=TOLD), **options)  # type: ignore[arg-type]


def choice(models: ServedModels, name: str, ask: Ask) -> Choice:
    *pieces, last = models.stream_items(name, ask)
    assert isinstance(last, Choice)
    texts = [piece.text for piece in pieces if isinstance(piece, Piece)]
    assert "".join(texts) == last.reply.text
    return last


@pytest.mark.parametrize("name", ["plain", "red", "blue"])
def test_greedy_ids_and_log_probabilities_are_ours(served: ServedModels, llama: ServedModels, name: str) -> None:
    for text in TEXTS:
        ours, theirs = choice(served, name, asked(text)), choice(llama, name, asked(text))
        assert [token.id for token in theirs.tokens] == [token.id for token in ours.tokens]
        assert theirs.reply.text == ours.reply.text
        assert theirs.reply.finish_reason == ours.reply.finish_reason
        for a, b in zip(theirs.tokens, ours.tokens, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
            assert [value for _, value in a.top] == pytest.approx([value for _, value in b.top], abs=1e-4)


def test_different_adapters_at_once_do_not_mix(served: ServedModels, llama: ServedModels) -> None:
    cases = [(name, text) for name in ("plain", "red", "blue") for text in TEXTS] * 2
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        name, text = cases[number]
        found[number] = choice(llama, name, asked(text)).reply.text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (name, text) in enumerate(cases):
        assert found[number] == choice(served, name, asked(text)).reply.text


def test_stop_strings_biases_and_seeds(served: ServedModels, llama: ServedModels) -> None:
    whole = choice(served, "red", asked(TEXTS[0])).reply.text
    stop = (whole[5:7],)
    assert choice(llama, "red", asked(TEXTS[0], stop=stop)).reply == replace(
        choice(served, "red", asked(TEXTS[0], stop=stop)).reply, latency_s=pytest.approx(0, abs=1e9)
    )
    biased = asked(TEXTS[0], sampling=Sampling(top_logprobs=0, logit_bias=((70, 100.0),)))
    assert {token.id for token in choice(llama, "plain", biased).tokens} == {70}
    drawn = asked(TEXTS[0], sampling=Sampling(temperature=1.0, seed=3, top_logprobs=0))
    assert choice(llama, "plain", drawn).tokens == choice(llama, "plain", drawn).tokens


def test_a_reply_fills_the_context_to_its_last_token(served: ServedModels, llama: ServedModels) -> None:
    base = served.get("plain").base
    sampling = Sampling(top_logprobs=0, logit_bias=tuple((token, -100.0) for token in base.renderer.stop_ids))
    left = base.facts.max_positions - len(asked(TEXTS[0]).prompt(base))
    ask = asked(TEXTS[0], max_new_tokens=left, sampling=sampling)
    ours, theirs = choice(served, "plain", ask), choice(llama, "plain", ask)
    assert theirs.reply.completion_tokens == ours.reply.completion_tokens == left
    assert theirs.reply.finish_reason == "length"


def test_several_replies_and_what_is_beyond_it(llama: ServedModels) -> None:
    several = asked(TEXTS[1], n=3, sampling=Sampling(temperature=1.0, seed=1))
    arrived: list[object] = []
    done = threading.Event()

    def put(item: object) -> None:
        arrived.append(item)
        if sum(isinstance(one, Choice) for one in arrived) == 3:
            done.set()

    llama.submit(llama.get("plain"), several, put=put)
    assert done.wait(30)
    assert {item.index for item in arrived if isinstance(item, Choice)} == {0, 1, 2}
    with pytest.raises(RequestError) as refused:
        llama.submit(llama.get("plain"), asked(TEXTS[1], sampling=Sampling(presence_penalty=1.0)), put=put)
    assert (refused.value.param, refused.value.status) == ("presence_penalty", 400)


def test_a_new_adapter_joins_while_others_answer(llama: ServedModels, make_adapter: Callable[..., Path]) -> None:
    ask = asked(TEXTS[2], max_new_tokens=120)
    going = llama.stream_items("red", ask)
    first = next(going)
    llama.add("green", str(make_adapter(7)))
    pieces = [first, *going]
    assert isinstance(pieces[-1], Choice)
    assert pieces[-1].reply.text == choice(llama, "red", ask).reply.text
    assert choice(llama, "green", ask).reply.text != pieces[-1].reply.text
    llama.remove("green")
    llama.check_ready()


def test_it_is_started_again_when_its_process_has_died(tiny_base: Path) -> None:
    engine = open_llamacpp(
        str(tiny_base), quantized=False, precision="auto", say=lambda text: None, kind="f32", export=GgufFiles()
    )
    models = ServedModels.load({"plain": str(tiny_base)}, open_engine=lambda base, **options: engine)
    before = choice(models, "plain", asked(TEXTS[0])).reply.text
    engine._process._process.kill()
    engine._process._process.wait()
    assert choice(models, "plain", asked(TEXTS[0])).reply.text == before
    process = engine._process
    engine.stop()
    assert process._process.wait(30) == 0, "with the last request that used it"


def test_a_file_it_cannot_read_is_told(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing more")

    class Bad(GgufFiles):
        def base(self, *args: object, **options: object) -> Path:
            return tmp_path / "bad.gguf"

    with pytest.raises(Exception, match="does not take"):
        LlamaCpp(load_base(str(tiny_base), precision="float32"), kind="f32", export=Bad())


def test_auto_says_which_and_why(tiny_base: Path) -> None:
    said: list[str] = []
    models = ServedModels.load(
        {"plain": str(tiny_base)}, precision="float32", say=said.append, open_engine=engine_opener("auto")
    )
    (line,) = [text for text in said if text.startswith("Engine ")]
    assert "tokens/s alone" in line and ("llamacpp:" in line or "torch:" in line)
    assert choice(models, "plain", asked(TEXTS[0])).reply.completion_tokens
    for engine in models.engines:
        engine.stop()


def test_a_base_in_four_bits_is_refused(tiny_base: Path) -> None:
    opened = partial(open_llamacpp, kind="f32", export=GgufFiles())
    with pytest.raises(InputError, match="4 bits"):
        opened(str(tiny_base), quantized=True, precision="auto", say=print)


def test_a_reply_that_breaks_off_is_an_error() -> None:
    from tunesmith.serve.engines.llamacpp import _read

    lines = ['data: {"stop": false, "tokens": [5], "tokens_predicted": 1}', ""]
    with pytest.raises(ServeError, match="broke off"):
        list(_read(iter(lines), top=None))
    lost = ['data: {"stop": false, "tokens": [5], "tokens_predicted": 2}']
    with pytest.raises(ServeError, match="made 2 tokens and sent 1"):
        list(_read(iter(lost), top=None))
