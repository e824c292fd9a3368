"""Named models on loaded bases: each base is in memory once, with the adapters in use beside each other on it.

Not here: HTTP (serve.app), whose turn it is (serve.scheduler), text (serve.reply). Names come from a fixed list, and
from `find`: a model that its owner made is loaded when it is first asked, and the one asked longest ago makes room.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.adapter import Tuned, find_tuned
from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import InputError, ModelError, ServeError
from tunesmith.model import Base, find_base
from tunesmith.runs import is_run
from tunesmith.sampling import Token
from tunesmith.serve.access import LOCAL_OWNER
from tunesmith.serve.engines.engine import Engine, OpenEngine, Say
from tunesmith.serve.engines.pytorch import open_torch
from tunesmith.serve.records.models import Made
from tunesmith.serve.reply import Ask, Choice, Item, Piece, Writer, reply_limit
from tunesmith.serve.scheduler import Busy, Job
from tunesmith.serve.wire.errors import RequestError
from tunesmith.store import find_folder

MAX_ADAPTERS = 64  # found by `find` and held at once
MAX_ADAPTER_BYTES = 4 << 30
READY_S = 10.0

Find = Callable[[str, str], Made | None]  # (name, owner)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name of the server: a base with or without an adapter, pinned by the sha256 of both."""

    name: str
    target: str
    engine: Engine
    adapter: Any  # what the engine's `put_on` gave; None is the base as it is
    created: int  # seconds since 1970: when the adapter, or the base, was written

    @property
    def base(self) -> Base:
        return self.engine.base

    @property
    def adapter_sha256(self) -> str | None:
        return self.adapter.sha256 if self.adapter else None

    @property
    def fingerprint(self) -> str:
        """Changes when the weights that answer change."""
        return f"fp_{self.base.sha256[:10]}_{(self.adapter_sha256 or 'base')[:10]}"


class ServedModels:
    """The models of one server. `load` makes it; `get` finds one, `submit` asks it; `stream` does both."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        *,
        find: Find | None = None,
        precision: str = "auto",
        say: Say = lambda text: None,
        open_engine: OpenEngine = open_torch,
    ) -> None:
        self._models = dict(models)
        self._bases = {_key(model.base.facts.path, model.base.quantized): model.engine for model in models.values()}
        self._pinned = set(self._bases)  # those that stay, whoever asks
        self._made: OrderedDict[str, ServedModel] = OrderedDict()  # by `find`, the one asked longest ago first
        self._trials: dict[tuple[str, str], Made] = {}
        self._loading = threading.RLock()
        self._probing = threading.Lock()
        self.find = find
        self.precision = precision
        self.open_engine = open_engine
        self.say = say
        self.max_adapters = MAX_ADAPTERS
        self.max_adapter_bytes = MAX_ADAPTER_BYTES

    @classmethod
    def load(
        cls,
        targets: Mapping[str, str],
        *,
        precision: str = "auto",
        say: Say = lambda text: None,
        find: Find | None = None,
        open_engine: OpenEngine = open_torch,
    ) -> ServedModels:
        """Load name -> target, where a target is a folder of a run or an adapter, an alias, or a base's name or
        folder.

        Raises InputError when a target is none of these, and ModelError when an adapter is pinned to another base or
        does not change its base's logits.
        """
        if not targets:
            raise InputError("There is no model to serve.", "Name at least one: NAME=FOLDER.")
        found = {name: _resolve(target) for name, target in targets.items()}  # all refused before any is loaded
        models = cls({}, find=find, precision=precision, say=say, open_engine=open_engine)
        for name, tuned in found.items():
            models._models[name] = models._load(name, targets[name], tuned)
        models._pinned = set(models._bases)
        return models

    def __iter__(self) -> Iterator[ServedModel]:
        """Those of the fixed list, which everyone may ask."""
        return iter(list(self._models.values()))

    @property
    def engines(self) -> list[Engine]:
        return list(self._bases.values())

    def at_hand(self, name: str) -> ServedModel | None:
        """One of the fixed list, which never has to be loaded."""
        return self._models.get(name)

    def get(self, name: str, *, owner: str = LOCAL_OWNER) -> ServedModel:
        """The model of this name; one that its owner made is loaded, so that this may take a moment.

        Raises ServeError (404) naming the models there are, the same for a stranger's model as for none.
        """
        if name in self._models:
            return self._models[name]
        made = self._trials.get((name, owner)) or (self.find(name, owner) if self.find else None)
        if made is None:
            raise ServeError(
                f"The model {name!r} is not served here.",
                f"Served: {', '.join(self._models)}.",
                status=404,
                code="model_not_found",
            )
        return self._made_model(made)

    def add(self, name: str, target: str) -> ServedModel:
        """Put a model on the fixed list while others answer, or another in the place of one; requests that began end
        with what they began with. Raises as `load`."""
        tuned = _resolve(target)
        with self._loading:
            before, model = self._models.get(name), self._load(name, target, tuned)
            self._models[name] = model
            if before is not None:
                before.engine.take_off(before.adapter)
            return model

    def remove(self, name: str) -> None:
        """Take a model off: one of the fixed list, or one that was found. Requests that began go on to their end."""
        with self._loading:
            model = self._models.pop(name, None) or self._made.pop(name, None)
            if model is not None:
                model.engine.take_off(model.adapter)
                self._let_bases_go()

    @contextmanager
    def on_trial(self, made: Made) -> Iterator[None]:
        """While open, a model that is on no list answers under its name and to its owner, as it will once it is."""
        self._trials[made.name, made.owner] = made
        try:
            yield
        finally:
            del self._trials[made.name, made.owner]
            self.remove(made.name)

    def submit(self, served: ServedModel, ask: Ask, *, put: Callable[[Item], None], owner: str = LOCAL_OWNER) -> Job:
        """Queue a request with the base of a model that `get` gave; nothing is loaded. Setting the job's `cancelled`
        ends it before its next token.

        `put` gets, from a thread of the engine, pieces of text and a Choice for each reply, or the exception that ended
        it. Raises ServeError for what cannot be answered: too long, beyond the engine, or too many wait (Busy).
        """
        served.engine.check(ask)
        ids = ask.prompt(served.base)
        limit = reply_limit(served.base, len(ids), asked=ask.max_new_tokens)
        _check_tokens(ask.ids, served.base, param="prompt")
        _check_tokens([token for token, _ in ask.sampling.logit_bias], served.base, param="logit_bias")
        writers = [Writer(served.base, ask, index=index, prompt_tokens=len(ids), limit=limit) for index in range(ask.n)]
        job = Job(ids, writers, put, served.adapter, owner, most=limit)
        served.engine.submit(job)
        return job

    def check(self, served: ServedModel, ids: Sequence[int]) -> None:
        """Raises as `submit` for a text that the model cannot read."""
        reply_limit(served.base, len(ids), asked=1)
        _check_tokens(ids, served.base, param="prompt")

    def tell(self, served: ServedModel, ids: Sequence[int], *, top: int) -> list[Token]:
        """How likely the model finds each token of a text, and the `top` best in its place. Raises as `check`."""
        self.check(served, ids)
        return served.engine.tell(ids, served.adapter, top=top)

    def stream(self, name: str, ask: Ask, *, owner: str = LOCAL_OWNER) -> Iterator[str | Reply]:
        """The same for a caller that may wait: pieces of text, then the Reply. Closing it ends the generation."""
        for item in self.stream_items(name, ask, owner=owner):
            yield item.reply if isinstance(item, Choice) else item.text

    def stream_items(self, name: str, ask: Ask, *, owner: str = LOCAL_OWNER) -> Iterator[Piece | Choice]:
        """As `stream`, with the tokens where `ask` wants log-probabilities."""
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        job = self.submit(self.get(name, owner=owner), ask, put=items.put, owner=owner)
        try:
            while True:
                item = items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Choice):
                    return
        finally:
            job.cancelled.set()

    def check_ready(self) -> None:
        """Every base makes a token, or made one just now. Raises ServeError (503) when one does not."""
        with self._probing:
            for engine in self.engines:
                if not engine.is_alive:
                    _make_a_token(engine)

    def _made_model(self, made: Made) -> ServedModel:
        """A made model, loaded if it is not, or if another was made under its name."""
        with self._loading:
            model = self._made.get(made.name)
            if model is None or model.target != f"{made.folder} {made.sha256}":
                if model is not None:
                    model.engine.take_off(model.adapter)
                tuned = find_tuned(made.folder)
                model = self._load(made.name, f"{made.folder} {made.sha256}", tuned, created=made.created)
                if (model.adapter_sha256 or model.base.sha256) != made.sha256:
                    raise ModelError(f"The files of {made.name!r} are not those that were made.", "Train it again.")
                self._made[made.name] = model
                self._make_room()
            self._made.move_to_end(made.name)
            return model

    def _make_room(self) -> None:
        """The made models asked longest ago go; the newest stays."""
        sizes = {name: _num_bytes(model) for name, model in self._made.items()}
        while len(sizes) > 1 and (len(sizes) > self.max_adapters or sum(sizes.values()) > self.max_adapter_bytes):
            name, model = self._made.popitem(last=False)
            del sizes[name]
            model.engine.take_off(model.adapter)
        self._let_bases_go()

    def _let_bases_go(self) -> None:
        used = {id(model.engine) for model in (*self._models.values(), *self._made.values())}
        for key, engine in list(self._bases.items()):
            if key not in self._pinned and id(engine) not in used:
                self._bases.pop(key).stop()

    def _load(self, name: str, target: str, tuned: Tuned, *, created: int | None = None) -> ServedModel:
        key = _key(find_base(tuned.base, self.say), tuned.quantized)
        if key not in self._bases:
            options: dict[str, Any] = {"quantized": tuned.quantized, "precision": self.precision, "say": self.say}
            self._bases[key] = self.open_engine(tuned.base, **options)
        engine = self._bases[key]
        adapter = engine.put_on(tuned.adapter, name=name, say=self.say) if tuned.adapter else None
        return ServedModel(name, target, engine, adapter, created or _written(tuned.adapter or engine.base.facts.path))


def _make_a_token(engine: Engine) -> None:
    items: queue.SimpleQueue[Item] = queue.SimpleQueue()
    ids = engine.base.renderer.prompt([Message("user", "?")])
    writer = Writer(engine.base, Ask(pieces=False), index=0, prompt_tokens=len(ids), limit=1)
    try:
        engine.submit(Job(ids, [writer], items.put, most=1))
        item = items.get(timeout=READY_S)
    except (queue.Empty, Busy) as error:
        raise ServeError(f"{engine.base.name} makes no token.", "Look at the log.", status=503) from error
    if isinstance(item, Exception):
        raise ServeError(f"{engine.base.name} fails to answer.", "Look at the log.", status=503) from item


def _num_bytes(model: ServedModel) -> int:
    """What goes from memory with it: an adapter, or a base of its own."""
    return model.adapter.num_bytes if model.adapter else model.base.facts.weight_bytes


def _check_tokens(ids: Sequence[int], base: Base, *, param: str) -> None:
    size = base.facts.vocab_size
    for token in ids:
        if not 0 <= token < size:
            raise RequestError(f"There is no token {token}: those of {base.name} are 0 to {size - 1}.", param=param)


def _key(path: Path, quantized: bool) -> tuple[Path, bool]:
    return path.resolve(), quantized


def _resolve(target: str) -> Tuned:
    """The base, and the adapter on it, if any. Raises InputError for a run that is not finished."""
    path = find_folder(target)
    if is_run(path) or (path / "adapter_config.json").is_file():
        return find_tuned(path)
    return Tuned(str(path) if path.is_dir() else target, None, False)


def _written(folder: Path) -> int:
    return int(max(file.stat().st_mtime for file in folder.glob("*.safetensors")))
