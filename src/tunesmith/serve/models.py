"""Named models on loaded bases: each base is in memory once, with all its adapters beside each other on it.

Not here: HTTP (serve.app), stop strings (serve.reply). Each base has one thread, and every generation on it runs there,
one after the other: switching adapters is safe by construction, and the event loop never waits for torch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.adapter import Tuned, add_adapter, find_tuned, logit_change
from tunesmith.contender import Reply
from tunesmith.errors import InputError, ModelError, ServeError
from tunesmith.facts import weights_sha256
from tunesmith.model import Base, find_base, load_base
from tunesmith.runs import is_run
from tunesmith.serve.reply import Ask, stream_reply
from tunesmith.store import find_folder

Item = str | Reply | Exception
Say = Callable[[str], None]


@dataclass(slots=True)
class _LoadedBase:
    base: Base
    worker: ThreadPoolExecutor
    model: Any | None = None  # the PEFT model once an adapter is on it
    adapters: int = 0

    @contextmanager
    def active(self, adapter: str | None) -> Iterator[Any]:
        """The model with just this adapter in effect; to be entered on the worker's thread only."""
        if self.model is None:
            yield self.base.model
        elif adapter is None:
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.set_adapter(adapter, inference_mode=True)
            yield self.model


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name of the server: a base with or without an adapter, pinned by the sha256 of both."""

    name: str
    target: str
    loaded: _LoadedBase
    adapter: str | None  # its name on the PEFT model
    adapter_sha256: str | None
    created: int  # seconds since 1970: when the adapter, or the base, was written

    @property
    def base(self) -> Base:
        return self.loaded.base

    @property
    def fingerprint(self) -> str:
        """Changes when the weights that answer change."""
        return f"fp_{self.base.sha256[:10]}_{(self.adapter_sha256 or 'base')[:10]}"


class ServedModels:
    """The models of one server. `load` makes it; `submit` and `stream` answer."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = dict(models)

    @classmethod
    def load(cls, targets: Mapping[str, str], *, precision: str = "auto", say: Say = lambda text: None) -> ServedModels:
        """Load name -> target, where a target is a folder of a run or an adapter, an alias, or a base's name or
        folder.

        Raises InputError when a target is none of these, and ModelError when an adapter is pinned to another base or
        does not change its base's logits.
        """
        if not targets:
            raise InputError("There is no model to serve.", "Name at least one: NAME=FOLDER.")
        found = {name: _resolve(target) for name, target in targets.items()}  # all refused before any is loaded
        bases: dict[tuple[Path, bool], _LoadedBase] = {}
        models = {}
        for name, tuned in found.items():
            key = find_base(tuned.base, say).resolve(), tuned.quantized
            if key not in bases:
                worker = ThreadPoolExecutor(1, thread_name_prefix=f"tunesmith-{key[0].name}")
                base = load_base(tuned.base, precision=precision, quantize=tuned.quantized, say=say)
                bases[key] = _LoadedBase(base, worker)
            models[name] = _put_on(bases[key], name, target=targets[name], folder=tuned.adapter)
        return cls(models)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str) -> ServedModel:
        """Raises ServeError (404) naming the models there are."""
        if name not in self._models:
            raise ServeError(
                f"The model {name!r} is not served here.",
                f"Served: {', '.join(self._models)}.",
                status=404,
                code="model_not_found",
            )
        return self._models[name]

    def submit(self, name: str, ask: Ask, *, put: Callable[[Item], None]) -> threading.Event:
        """Queue a generation on its base's thread. Setting the event returned ends it before its next token.

        From that thread `put` gets pieces of text and last the Reply, or the exception that ended it.
        """
        served = self.get(name)
        cancelled = threading.Event()

        def work() -> None:
            try:
                if not cancelled.is_set():
                    with served.loaded.active(served.adapter) as model:
                        for item in stream_reply(served.base, model, ask=ask, cancelled=cancelled):
                            put(item)
            except Exception as error:  # it belongs to whoever asked, on another thread
                put(error)

        served.loaded.worker.submit(work)
        return cancelled

    def stream(self, name: str, ask: Ask) -> Iterator[str | Reply]:
        """The same for a caller that may wait: pieces of text, then the Reply. Closing it ends the generation."""
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        cancelled = self.submit(name, ask, put=items.put)
        try:
            while True:
                item = items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Reply):
                    return
        finally:
            cancelled.set()


def _resolve(target: str) -> Tuned:
    """The base, and the adapter on it, if any. Raises InputError for a run that is not finished."""
    path = find_folder(target)
    if is_run(path) or (path / "adapter_config.json").is_file():
        return find_tuned(path)
    return Tuned(str(path) if path.is_dir() else target, None, False)


def _put_on(loaded: _LoadedBase, name: str, *, target: str, folder: Path | None) -> ServedModel:
    """A model of a base, its adapter loaded and proven to have an effect."""
    if folder is None:
        return ServedModel(name, target, loaded, None, None, _written(loaded.base.facts.path))
    adapter = f"adapter_{loaded.adapters}"
    loaded.model = add_adapter(loaded.base, folder, name=adapter, model=loaded.model)
    loaded.adapters += 1
    if not logit_change(loaded.base, loaded.model) > 0:  # NaN fails as well
        raise ModelError(
            f"{folder} does not change what {loaded.base.name} answers.", "Train it again; it must not be served."
        )
    return ServedModel(name, target, loaded, adapter, weights_sha256(folder), _written(folder))


def _written(folder: Path) -> int:
    return int(max(file.stat().st_mtime for file in folder.glob("*.safetensors")))
