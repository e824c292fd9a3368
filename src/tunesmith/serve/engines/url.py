"""The engine `url`: another server decodes, in its own dialect (vllm, ollama, plain_openai), told to load our adapters.

Not here: the dialects, HTTP (remote_server). What kind of server it is shows in what it answers when this one starts.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.adapter import check_pin
from tunesmith.chat import Message
from tunesmith.errors import InputError, ServeError
from tunesmith.facts import file_sha256, weights_sha256
from tunesmith.model import Base
from tunesmith.serve.engines.engine import Say, refuse_what_is_beyond, without_weights
from tunesmith.serve.engines.lanes import Items, LanedEngine, Lanes
from tunesmith.serve.engines.ollama import Ollama
from tunesmith.serve.engines.plain_openai import PlainOpenAI
from tunesmith.serve.engines.remote_server import RemoteServer
from tunesmith.serve.engines.vllm import Vllm, takes_ids
from tunesmith.serve.reply import Ask, Writer
from tunesmith.serve.scheduler import Job

LANES = 64
PROBE = (Message("user", "Where is my card? It was 12 days, 3 hours."),)


class Dialect(Protocol):
    """`cannot`: the fields that requests may not use. `load` gives the name that the adapter has there."""

    kind: str
    cannot: tuple[str, ...]
    model: str

    def load(self, folder: Path, *, served: str, name: str) -> str: ...

    def unload(self, name: str) -> None: ...

    def answer(self, job: Job, writer: Writer, *, model: str) -> Items: ...


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class UrlAdapter:
    """Unloaded there when no model and no request has it any more."""

    model: str
    sha256: str
    num_bytes: int


class UrlEngine(LanedEngine):
    def __init__(self, base: Base, dialect: Dialect, *, url: str) -> None:
        self.base = base
        self.dialect = dialect
        self.name = f"{dialect.kind} at {url}"
        self.lanes = Lanes(self._answer, num_lanes=LANES)
        self._loaded: weakref.WeakValueDictionary[str, UrlAdapter] = weakref.WeakValueDictionary()
        self._loading = threading.Lock()

    @property
    def precision(self) -> str:
        return "auto"

    def put_on(self, folder: Path, *, name: str, say: Say) -> UrlAdapter:
        check_pin(self.base, folder)
        applied = file_sha256(folder / "adapter_config.json")
        own = f"tunesmith-{weights_sha256(folder)[:16]}-{applied[:8]}"
        with self._loading:
            adapter = self._loaded.get(own)
            if adapter is None:
                model = self.dialect.load(folder, served=name, name=own)
                size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
                adapter = UrlAdapter(model, weights_sha256(folder), size)
                weakref.finalize(adapter, _unload, self.dialect, model, say)
                if model == own:
                    self._loaded[own] = adapter
            return adapter

    def take_off(self, adapter: UrlAdapter | None) -> None:
        """It goes with the last request that has it."""

    def check(self, ask: Ask) -> None:
        refuse_what_is_beyond(ask, cannot=self.dialect.cannot, engine=self.name)

    def stop(self) -> None:
        """The other server goes on."""

    def _answer(self, job: Job, writer: Writer) -> Items:
        adapter: Any = job.adapter
        return self.dialect.answer(job, writer, model=adapter.model if adapter else self.dialect.model)


def open_url(base: str, *, quantized: bool, precision: str, say: Say, url: str) -> UrlEngine:
    """`url` is http://HOST:PORT/v1, with #MODEL for the base's name there. Raises InputError for a base in 4 bits, a
    server without the model, and one whose tokens are not ours."""
    if quantized:
        raise InputError(f"{base} is held in 4 bits here, which another server does not know.", "Use --engine torch.")
    address, _, model = url.partition("#")
    if not address.startswith(("http://", "https://")):
        raise InputError(f"{url!r} is no address of a server.", "For example: --engine url:http://127.0.0.1:8000/v1")
    held = without_weights(base, say=say)
    try:
        dialect = find_dialect(RemoteServer(address), model=model, base=held)
    except ServeError as error:
        raise InputError(error.message, "Is it running, and is this its address?") from error
    say(f"{held.name} is answered for by {dialect.kind} at {address}, as its model {dialect.model}.")
    return UrlEngine(held, dialect, url=address)


def find_dialect(server: RemoteServer, *, model: str, base: Base) -> Dialect:
    """By what the server answers. Raises InputError, and ServeError where it does not answer at all."""
    if server.find("/api/version"):
        there = [entry["name"] for entry in (server.find("/api/tags") or {}).get("models", ())]
        name = _model(model or base.name, there, server, tagged=True)
        return _checked(Ollama(server, name, context=base.facts.max_positions), base)
    listed = (server.find("/v1/models") or {}).get("data", ())
    there = [entry["id"] for entry in listed if not entry.get("parent")]
    name = _model(model or (there[0] if len(there) == 1 else base.name), there, server)
    answer = takes_ids(server, name, ids=base.renderer.prompt(PROBE))
    if answer and answer["choices"][0].get("token_ids"):
        _check_tokenizer(server, name, base)
        return Vllm(server, name)
    return _checked(PlainOpenAI(server, name, takes_ids=answer is not None), base)


def _model(name: str, there: Sequence[str], server: RemoteServer, *, tagged: bool = False) -> str:
    if name in there or (tagged and f"{name}:latest" in there):
        return name
    raise InputError(
        f"{server.root} has no model {name!r}.", f"Name one with #MODEL; it has: {', '.join(there) or 'none'}."
    )


def _check_tokenizer(server: RemoteServer, model: str, base: Base) -> None:
    """Ids mean the same there. Raises InputError otherwise; vLLM tells its own at /tokenize."""
    ids = base.renderer.prompt(PROBE)
    text = base.renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    told = server.ask("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False}).get("tokens")
    if told != ids:
        raise InputError(f"{model} at {server.root} has other tokens than {base.name}.", "Serve the same base there.")


def _checked(dialect: Dialect, base: Base) -> Dialect:
    """A token is made, so that a server which counts other tokens in the same prompt is refused before it answers."""
    ids = base.renderer.prompt(PROBE)
    writer = Writer(base, Ask(pieces=False), index=0, prompt_tokens=len(ids), limit=1)
    for _ in dialect.answer(Job(ids, [writer], lambda item: None), writer, model=dialect.model):
        pass
    return dialect


def _unload(dialect: Dialect, model: str, say: Say) -> None:
    try:
        dialect.unload(model)
    except ServeError as error:
        say(f"{model} stays loaded: {error.message}")
