"""The bytes that each token stands for, as log-probabilities are told with them.

Not here: text of many tokens (render, serve.reply). Called by serve.wire.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # of tokenizers that fall back to single bytes


class TokenBytes:
    """For a fast tokenizer, whose vocabulary holds either bytes in GPT-2's printable alphabet, or pieces of text."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.added = {int(number): token.content for number, token in tokenizer.added_tokens_decoder.items()}
        decoder = json.loads(self.backend.decoder.__getstate__()) if self.backend.decoder else {}
        self.is_byte_level = "ByteLevel" in json.dumps(decoder)

    def of(self, token: int) -> bytes:
        if token in self.added:
            return str(self.added[token]).encode()
        piece = self.backend.id_to_token(token) or ""
        if self.is_byte_level:
            alphabet = _alphabet()
            return bytes(alphabet[char] for char in piece if char in alphabet)
        if found := BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return str(piece).replace("\u2581", " ").encode()


@cache
def _alphabet() -> dict[str, int]:
    """Character -> byte. Printable bytes stand for themselves, the others for characters from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
