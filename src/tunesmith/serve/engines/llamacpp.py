"""The engine `llamacpp`: llama.cpp's server on a GGUF file of the base, adapters as GGUF files chosen by each request.

Not here: its process (llama_process), the files (export.gguf, through `Exporter`), whose turn it is (lanes). It is
given our token ids and gives ids back; text, stop strings and the end of a reply are ours (serve.reply).
"""

from __future__ import annotations

import json
import secrets
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from tunesmith.adapter import check_pin
from tunesmith.errors import InputError, ServeError, TunesmithError
from tunesmith.facts import weights_sha256
from tunesmith.model import Base
from tunesmith.sampling import Sampling, Token
from tunesmith.serve.engines.engine import Say, refuse_what_is_beyond, without_weights
from tunesmith.serve.engines.lanes import Items, LanedEngine, Lanes, written
from tunesmith.serve.engines.llama_process import LlamaProcess
from tunesmith.serve.reply import Ask, Writer
from tunesmith.serve.scheduler import Job

SLOTS = 16
CACHE_BYTES = 2 << 30  # of keys and values
SPARE = 64  # positions, with which no reply that fits meets llama.cpp's own end of the context
READ_S = 600.0  # for the next token, which may wait behind long prompts
# Its penalties count the prompt's tokens, OpenAI's and ours the reply's only. Grammars are those of the torch engine.
CANNOT = ("response_format", "presence_penalty", "frequency_penalty")
PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}


class Exporter(Protocol):
    """Writes GGUF files, or finds those it wrote."""

    def base(self, path: Path, kind: str, *, sha256: str, stop_id: int, say: Say) -> Path: ...

    def adapter(self, folder: Path, *, base: Path) -> Path: ...


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LlamaAdapter:
    file: Path
    sha256: str
    num_bytes: int


class LlamaCpp(LanedEngine):
    """Adapters stay loaded as long as a model or a request has them. One that is new needs another process, which is
    started beside the one that answers."""

    def __init__(self, base: Base, *, kind: str, export: Exporter, say: Say = lambda text: None) -> None:
        self.base = base
        self.kind = kind
        self.name = f"llamacpp ({kind})"
        self.export = export
        stop_id = min(base.renderer.stop_ids)
        self.file = export.base(base.facts.path, kind, sha256=base.sha256, stop_id=stop_id, say=say)
        self._adapters: weakref.WeakSet[LlamaAdapter] = weakref.WeakSet()
        self._starting = threading.Lock()
        self._room = _room(base)
        self._http = httpx.Client(timeout=httpx.Timeout(READ_S, connect=10.0), trust_env=False)
        self._process, self._places = self._start()
        self.lanes = Lanes(self._answer, num_lanes=SLOTS, room=self._room)

    @property
    def precision(self) -> str:
        return PRECISIONS.get(self.kind, "auto")

    def put_on(self, folder: Path, *, name: str, say: Say) -> LlamaAdapter:
        check_pin(self.base, folder)
        file = self.export.adapter(folder, base=self.base.facts.path)
        adapter = LlamaAdapter(file, weights_sha256(folder), file.stat().st_size)
        with self._starting:
            self._adapters.add(adapter)
            before = self._process
            try:
                self._process, self._places = self._start()
            except TunesmithError:
                self._adapters.discard(adapter)
                raise
        before.retire()
        return adapter

    def take_off(self, adapter: LlamaAdapter | None) -> None:
        """It goes with the last request that has it, at the next start of a process."""

    def check(self, ask: Ask) -> None:
        refuse_what_is_beyond(ask, cannot=CANNOT, engine=self.name)

    def stop(self) -> None:
        self._process.retire()

    def _start(self) -> tuple[LlamaProcess, dict[LlamaAdapter, int]]:
        adapters = list(self._adapters)
        process = LlamaProcess(self.file, [one.file for one in adapters], room=self._room, slots=SLOTS)
        return process, {adapter: place for place, adapter in enumerate(adapters)}

    @contextmanager
    def _current(self) -> Iterator[tuple[LlamaProcess, dict[LlamaAdapter, int]]]:
        """The process that takes new requests, started again if it has failed."""
        with ExitStack() as stack:
            with self._starting:
                if not self._process.is_running:
                    self._process.retire()
                    self._process, self._places = self._start()
                process, places = stack.enter_context(self._process.used()), self._places
            yield process, places

    def _answer(self, job: Job, writer: Writer) -> Items:
        return written(self._tokens(job, writer), writer)

    def _tokens(self, job: Job, writer: Writer) -> Generator[Token, None, None]:
        with self._current() as (process, places):
            worn: Any = job.adapter
            body = {
                "prompt": list(job.ids),
                "n_predict": writer.limit,
                "lora": [{"id": place, "scale": float(one is worn)} for one, place in places.items()],
                **_sampling(writer.drawing.sampling),
            }
            headers = {"authorization": f"Bearer {process.key}"}
            try:
                with self._http.stream("POST", f"{process.url}/completion", json=body, headers=headers) as response:
                    if response.status_code != 200:
                        response.read()
                        raise _failed(f"it answers {response.status_code}: {response.text[:200]}")
                    yield from _read(response.iter_lines(), top=writer.drawing.sampling.top_logprobs)
            except httpx.HTTPError as error:
                raise _failed(str(error) or type(error).__name__) from error


def open_llamacpp(base: str, *, quantized: bool, precision: str, say: Say, kind: str, export: Exporter) -> LlamaCpp:
    """Raises InputError for a base in 4 bits, or without llama.cpp; ModelError as `Exporter` does."""
    if quantized:
        raise InputError(f"{base} is held in 4 bits, which llamacpp has no equal of.", "Use --engine torch.")
    return LlamaCpp(without_weights(base, say=say), kind=kind, export=export, say=say)


def _room(base: Base) -> int:
    """How many tokens the cache is made for: at least one whole context."""
    config = json.loads((base.facts.path / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    token_bytes = 4 * 2 * base.facts.num_layers * (config.get("num_key_value_heads") or heads) * head_size
    context = base.facts.max_positions + SPARE
    return max(context, min(SLOTS * context, CACHE_BYTES // token_bytes))


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """The same distribution as sampling.pick draws from: biases, temperature, then the smallest set of top_p."""
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed % (2**32 - 1)
    told = sampling.top_logprobs
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "samplers": ["temperature", "top_p"],
        "seed": seed,
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias],
        "repeat_penalty": 1.0,
        "n_probs": 0 if told is None else max(1, told),
        "post_sampling_probs": False,
        "cache_prompt": False,  # its cache knows no owners
        "return_tokens": True,
        "stream": True,
    }


def _read(lines: Iterator[str], *, top: int | None) -> Iterator[Token]:
    """The tokens of a stream. Raises ServeError when it breaks off, tells of an error, or leaves tokens out."""
    made = 0
    for line in lines:
        if line.startswith("error:"):
            raise _failed(line[:200])
        if not line.startswith("data:"):
            continue
        event = json.loads(line.removeprefix("data:"))
        if "error" in event:
            raise _failed(str(event["error"])[:200])
        tokens = [] if event["stop"] else event["tokens"]
        made += len(tokens)
        if event["tokens_predicted"] != made:
            raise _failed(f"it made {event['tokens_predicted']} tokens and sent {made}")
        if event["stop"]:
            return
        told = event.get("completion_probabilities", ())
        for place, token in enumerate(tokens):
            yield Token(token) if top is None else _told(token, told[place], top=top)
    raise _failed("its stream broke off")


def _told(token: int, told: dict[str, Any], *, top: int) -> Token:
    if told["id"] != token:
        raise _failed("it tells the log-probability of another token")
    return Token(token, told["logprob"], tuple((one["id"], one["logprob"]) for one in told["top_logprobs"][:top]))


def _failed(why: str) -> ServeError:
    return ServeError(f"llama.cpp failed to answer: {why}.", "Ask again; look at the server's log.", status=503)
