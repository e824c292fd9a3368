"""Facts about a model folder, read from config.json and the safetensors headers; no weights are loaded.

Not here: torch. Used to choose settings before a run, to list models, and to pin them by hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a base model is. `max_positions` is its context in tokens, `num_parameters` counts tied weights once."""

    path: Path
    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    max_positions: int
    num_parameters: int
    weight_bytes: int


def read_facts(path: Path) -> ModelFacts:
    """Raises ModelError when the folder is no causal language model in safetensors."""
    config = _read_json(path / "config.json")
    text = config.get("text_config") or config
    try:
        hidden, layers, vocab = text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]
    except KeyError as error:
        raise ModelError(f"{path / 'config.json'} has no {error}.", "Is it a decoder-only language model?") from error
    parameters, size_bytes = _count_weights(path)
    return ModelFacts(
        path=path,
        model_type=config.get("model_type", "unknown"),
        hidden_size=hidden,
        num_layers=layers,
        vocab_size=vocab,
        max_positions=text.get("max_position_embeddings", 2048),
        num_parameters=parameters,
        weight_bytes=size_bytes,
    )


def weights_sha256(path: Path) -> str:
    """sha256 over the folder's safetensors files, by name: the identity of a base or an adapter."""
    files = _weight_files(path)
    digest = hashlib.sha256()
    for file in files:
        if len(files) > 1:
            digest.update(file.name.encode())
        digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest() if len(files) > 1 else file_sha256(files[0])


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{path} holds no safetensors weights.", "Only safetensors are loaded; convert the model first."
        )
    return files


def _count_weights(path: Path) -> tuple[int, int]:
    parameters = size_bytes = 0
    for file in _weight_files(path):
        for entry in safetensors_header(file).values():
            parameters += math.prod(entry["shape"])
            start, end = entry["data_offsets"]
            size_bytes += end - start
    return parameters, size_bytes


def safetensors_header(file: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets}. Format: 8 bytes little-endian length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100_000_000:
                raise ValueError("header too long")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"{file} is no readable safetensors file: {error}.", "Copy or train it again.") from error
    header.pop("__metadata__", None)
    return header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing.", "A model folder has config.json, a tokenizer and safetensors."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no object.")
    return value
