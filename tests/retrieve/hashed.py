"""An encoder that needs no model: character trigrams hashed into 64 numbers. It is real, only poor."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from tunesmith.retrieve.encoder import Vectors

DIMENSIONS = 64


class HashedEncoder:
    def __init__(self, name: str = "hashed") -> None:
        self.name = self.identity = name
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.encoded += texts
        vectors_ND = np.full((len(texts), DIMENSIONS), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for start in range(len(text) - 2):
                vectors_ND[row, zlib.crc32(text[start : start + 3].lower().encode()) % DIMENSIONS] += 1
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
