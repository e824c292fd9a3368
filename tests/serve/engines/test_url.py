"""The engine `url` against servers of each kind: the torch engine's replies, and faults as designed errors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.engines.other_servers import OllamaServer, OtherServer, PlainServer, VllmServer
from tunesmith.chat import Message
from tunesmith.cli.engine_choice import engine_opener
from tunesmith.errors import InputError, ServeError
from tunesmith.sampling import Sampling
from tunesmith.serve.app import create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.reply import Ask, Choice
from tunesmith.serve.run import running
from tunesmith.serve.scheduler import Busy
from tunesmith.serve.wire.errors import RequestError

KINDS = ("vllm", "ollama", "plain ids", "plain text")
TEXTS = ("My card is lost, case 7.", "Ünïcödé \U0001f600!")


@pytest.fixture(scope="module")
def behind(tiny_base: Path) -> ServedModels:
    """What the other servers answer with."""
    return ServedModels.load({"theirs": str(tiny_base)}, precision="float32")


@pytest.fixture
def start(behind: ServedModels, tmp_path: Path) -> Iterator[Callable[..., tuple[OtherServer, str]]]:
    """`start(kind)` gives a server and its address."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def run(kind: str, **options: Any) -> tuple[OtherServer, str]:
            server: OtherServer
            if kind == "vllm":
                server = VllmServer(behind, base="theirs")
            elif kind == "ollama":
                server = OllamaServer(behind, base="theirs", folder=tmp_path)
            else:
                server = PlainServer(behind, base="theirs", takes_ids=kind == "plain ids", **options)
            return server, stack.enter_context(running(server.app))

        yield run


def opened(url: str, targets: dict[str, str]) -> ServedModels:
    return ServedModels.load(targets, open_engine=engine_opener(f"url:{url}#theirs"))


def asked(text: str, **options: Any) -> Ask:
    return replace(Ask((Message("user", text),), max_new_tokens=24), **options)


def choice(models: ServedModels, name: str, ask: Ask) -> Choice:
    *pieces, last = models.stream_items(name, ask)
    assert isinstance(last, Choice)
    texts = [piece.text for piece in pieces if not isinstance(piece, Choice)]
    assert "".join(texts) == (last.reply.text if ask.pieces else "")
    return last


@pytest.mark.parametrize("kind", KINDS)
def test_replies_are_those_of_our_engine(
    kind: str, start: Callable[..., Any], served: ServedModels, tiny_base: Path
) -> None:
    server, url = start(kind)
    models = opened(url, {"plain": str(tiny_base)})
    for text in TEXTS:
        ours, theirs = choice(served, "plain", asked(text)).reply, choice(models, "plain", asked(text)).reply
        assert replace(theirs, latency_s=0.0) == replace(ours, latency_s=0.0)
        assert choice(models, "plain", asked(text, pieces=False)).reply.text == ours.text
    stop = ours.text[6:8]
    cut = choice(models, "plain", asked(text, stop=(stop,))).reply
    assert (cut.text, cut.finish_reason) == (ours.text.partition(stop)[0], "stop")
    given = server.seen[-1]["prompt"]
    assert isinstance(given, list) == (kind in ("vllm", "plain ids")), "token ids wherever they are taken"


@pytest.mark.parametrize("kind", ["vllm", "ollama"])
def test_adapters_are_loaded_there_and_unloaded(
    kind: str, start: Callable[..., Any], served: ServedModels, targets: dict[str, str]
) -> None:
    server, url = start(kind)
    models = opened(url, targets)
    assert len(server.loaded) == 2
    for name in ("red", "blue", "plain"):
        expected = choice(served, name, asked(TEXTS[0])).reply.text
        assert choice(models, name, asked(TEXTS[0])).reply.text == expected
    again = ServedModels.load({"red": targets["red"]}, open_engine=lambda base, **_: models.engines[0])
    models.remove("red")
    gc.collect()
    assert len(server.loaded) == 2, "another still has it"
    del again
    gc.collect()
    assert len(server.loaded) == 1


def test_a_plain_server_serves_what_it_has_by_name(
    start: Callable[..., Any], targets: dict[str, str], behind: ServedModels
) -> None:
    server, url = start("plain ids")
    with pytest.raises(InputError, match="no model 'red', and no way to load"):
        opened(url, targets)
    behind.add("red", targets["red"])
    server.loaded.append("red")
    models = opened(url, {"red": targets["red"]})
    assert choice(models, "red", asked(TEXTS[0])).reply.text
    assert server.seen[-1]["model"] == "red"


def test_vllm_tells_log_probabilities_biases_and_seeds(
    start: Callable[..., Any], served: ServedModels, tiny_base: Path
) -> None:
    server, url = start("vllm")
    models = opened(url, {"plain": str(tiny_base)})
    for top in (0, 2):
        ask = asked(TEXTS[0], sampling=Sampling(top_logprobs=top, logit_bias=((70, 3.0),)))
        for token, ours in zip(choice(models, "plain", ask).tokens, choice(served, "plain", ask).tokens, strict=True):
            assert (token.id, token.logprob) == (ours.id, pytest.approx(ours.logprob, abs=1e-5))
            assert [one for one, _ in token.top] == [one for one, _ in ours.top]
    body = server.seen[-1]
    assert (body["top_k"], body["repetition_penalty"], body["ignore_eos"]) == (-1, 1.0, True), "its own defaults"
    assert body["stop_token_ids"] == [2]


@pytest.mark.parametrize(
    ("kind", "sampling", "param"),
    [
        ("ollama", Sampling(top_logprobs=0), "logprobs"),
        ("ollama", Sampling(logit_bias=((3, 1.0),)), "logit_bias"),
        ("plain ids", Sampling(frequency_penalty=1.0), "frequency_penalty"),
        ("plain ids", Sampling(temperature=1.0, seed=1), "seed"),
    ],
)
def test_what_is_beyond_it_is_refused_by_name(
    kind: str, sampling: Sampling, param: str, start: Callable[..., Any], tiny_base: Path
) -> None:
    _, url = start(kind)
    models = opened(url, {"plain": str(tiny_base)})
    with pytest.raises(RequestError, match="beyond the engine") as refused:
        choice(models, "plain", asked(TEXTS[0], sampling=sampling))
    assert (refused.value.param, refused.value.status) == (param, 400)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("ollama", "plain ids")]


@pytest.mark.parametrize("kind", ["vllm", *SLOW])
@pytest.mark.parametrize(("fault", "status"), [("404", 502), ("break", 503), ("garbage", 502), ("429", 429)])
def test_its_faults_are_designed_errors(
    kind: str, fault: str, status: int, start: Callable[..., Any], tiny_base: Path
) -> None:
    server, url = start(kind)
    models = opened(url, {"plain": str(tiny_base)})
    server.fault = fault
    with pytest.raises(ServeError) as failed:
        choice(models, "plain", asked(TEXTS[0]))
    assert failed.value.status == status
    if isinstance(failed.value, Busy):
        assert failed.value.retry_after_s == 7
    assert choice(models, "plain", asked(TEXTS[0])).reply.text, "the next one is answered"


def test_over_http_a_fault_is_openai_s_error_body(start: Callable[..., Any], tiny_base: Path) -> None:
    server, url = start("vllm")
    with running(create_app(opened(url, {"plain": str(tiny_base)}))) as ours, httpx.Client(base_url=ours) as client:
        body = {"model": "plain", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
        assert client.post("/chat/completions", json=body).status_code == 200
        assert client.get(ours.removesuffix("/v1") + "/readyz").json() == {"status": "ready"}
        server.fault = "404"
        failed = client.post("/chat/completions", json=body)
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "engine_failed")
        server.fault = "429"
        busy = client.post("/chat/completions", json=body)
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
        form = {**body, "response_format": {"type": "json_object"}}
        refused = client.post("/chat/completions", json=form)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")


def test_it_waits_only_so_long(start: Callable[..., Any], tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.serve.engines import remote_server

    monkeypatch.setattr(remote_server.RemoteServer.__init__, "__kwdefaults__", {"read_s": 0.5})
    server, url = start("vllm")
    models = opened(url, {"plain": str(tiny_base)})
    server.fault = "slow"
    with pytest.raises(ServeError, match="did not answer in time") as failed:
        choice(models, "plain", asked(TEXTS[0]))
    assert failed.value.status == 504


def test_an_ollama_that_counts_other_tokens_is_not_believed(start: Callable[..., Any], tiny_base: Path) -> None:
    server, url = start("ollama")
    models = opened(url, {"plain": str(tiny_base)})
    server.fault = "miscount"
    with pytest.raises(ServeError, match="another tokenizer"):
        choice(models, "plain", asked(TEXTS[0]))


def test_a_control_token_that_a_person_wrote_is_not_sent_as_text(start: Callable[..., Any], tiny_base: Path) -> None:
    _, url = start("plain text")
    models = opened(url, {"plain": str(tiny_base)})
    with pytest.raises(RequestError, match="stands for other tokens"):
        choice(models, "plain", asked("<|im_end|> is how it ends"))


def test_a_vllm_without_ids_is_told(start: Callable[..., Any], tiny_base: Path) -> None:
    server, url = start("vllm")
    models = opened(url, {"plain": str(tiny_base)})
    server.fault = "no ids"
    with pytest.raises(ServeError, match=r"0\.10\.2"):
        choice(models, "plain", asked(TEXTS[0]))


def test_a_server_that_adds_a_token_is_refused_at_the_start(start: Callable[..., Any], tiny_base: Path) -> None:
    _, url = start("plain text", extra="<|endoftext|>")
    with pytest.raises(InputError, match="counts"):
        opened(url, {"plain": str(tiny_base)})


def test_no_server_and_no_such_model_are_input_errors(start: Callable[..., Any], tiny_base: Path) -> None:
    with pytest.raises(InputError, match="Is it running"):
        opened("http://127.0.0.1:9/v1", {"plain": str(tiny_base)})
    _, url = start("vllm")
    with pytest.raises(InputError, match="it has: theirs"):
        ServedModels.load({"plain": str(tiny_base)}, open_engine=engine_opener(f"url:{url}#other"))


@pytest.mark.parametrize("option", ["gpu", "llamacpp:", "llamacpp:q2", "url:", "torch:f32"])
def test_an_engine_that_is_none_is_told(option: str) -> None:
    with pytest.raises(InputError, match="There is no engine"):
        engine_opener(option)


def test_an_address_that_is_none_is_told(tiny_base: Path) -> None:
    with pytest.raises(InputError, match="no address"):
        engine_opener("url:localhost:8000")(str(tiny_base), quantized=False, precision="auto", say=print)
