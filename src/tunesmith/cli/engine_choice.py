"""`--engine`: what answers for the bases of `tunesmith serve` and `tunesmith server`; `auto` measures and says why.

Not here: the engines (serve.engines), the GGUF files (export.gguf). This is where the two verbs meet.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.errors import InputError, TunesmithError

if TYPE_CHECKING:
    from tunesmith.serve.engines.engine import Engine, OpenEngine, Say

WORTH = 1.1  # llama.cpp's speed over ours, alone and together, below which nothing is changed

EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        help="What decodes: torch (as trained), llamacpp[:f32|f16|bf16|q8_0], url:http://HOST:PORT/v1[#MODEL] (vLLM, "
        "Ollama, or another OpenAI-compatible server), or auto: the faster of torch and llamacpp here, if both answer "
        "alike.",
    ),
]


class GgufFiles:
    """serve.engines.llamacpp.Exporter"""

    def base(self, path: Path, kind: str, *, sha256: str, stop_id: int, say: Say) -> Path:
        from tunesmith.export.gguf import export_base

        return export_base(path, kind, sha256=sha256, stop_id=stop_id, say=say)

    def adapter(self, folder: Path, *, base: Path) -> Path:
        from tunesmith.export.gguf import export_adapter

        return export_adapter(folder, base)


def engine_opener(option: str) -> OpenEngine:
    """What opens an engine by this option. Raises InputError for one that is none."""
    from tunesmith.export.gguf import KINDS

    name, _, rest = option.partition(":")
    if option == "torch":
        from tunesmith.serve.engines.pytorch import open_torch

        return open_torch
    if option == "auto":
        return open_faster
    if name == "llamacpp" and (option == name or rest in KINDS):
        from tunesmith.serve.engines.llamacpp import open_llamacpp

        return partial(open_llamacpp, kind=rest or "f32", export=GgufFiles())
    if name == "url" and rest:
        from tunesmith.serve.engines.url import open_url

        return partial(open_url, url=rest)
    raise InputError(
        f"There is no engine {option!r}.",
        f"Choose auto, torch, llamacpp, llamacpp:TYPE ({', '.join(KINDS)}), or url:http://HOST:PORT/v1.",
    )


def open_faster(base: str, *, quantized: bool, precision: str, say: Say) -> Engine:
    """The torch engine, or llamacpp in float32 where it answers alike and is faster both alone and together."""
    from tunesmith.serve.engines.llamacpp import open_llamacpp
    from tunesmith.serve.engines.probe import difference, measure
    from tunesmith.serve.engines.pytorch import open_torch

    torch_engine = open_torch(base, quantized=quantized, precision=precision, say=say)
    try:
        llama = open_llamacpp(base, quantized=quantized, precision=precision, say=say, kind="f32", export=GgufFiles())
    except TunesmithError as error:
        say(f"Engine torch: {error.message}")
        return torch_engine
    try:
        other, largest = difference(torch_engine, llama)
        speeds = measure(torch_engine), measure(llama)
    except TunesmithError as error:
        say(f"Engine torch: {error.message}")
        llama.stop()
        return torch_engine
    told = f"torch makes {speeds[0]}; llama.cpp {speeds[1]}"
    faster = all(getattr(speeds[1], way) >= WORTH * getattr(speeds[0], way) for way in ("alone", "together"))
    if other is None and faster:
        say(f"Engine llamacpp: {told}; the same tokens, log-probabilities within {largest:.1e}.")
        torch_engine.stop()
        return llama
    say(f"Engine torch: {told}{f', but {other}' if other else ''}.")
    llama.stop()
    return torch_engine
