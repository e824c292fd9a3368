"""A file as a stream of bytes, unpacked if it is gzip or zstandard, and the sha256 of what lies on disk.

Not here: what the bytes mean (sniff, load). Nothing is written and at most some megabytes are held.
Called by data.load.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.read.decode import Fault, UnreadableError

if TYPE_CHECKING:
    from hashlib import _Hash

    from _typeshed import WriteableBuffer

BUFFER_BYTES = 1 << 20
# What a packed file may unpack to: text shrinks to a tenth or a fiftieth, made-up rows further; bombs a thousandfold.
MAX_RATIO = 250
FREE_BYTES = 1 << 28  # below this no ratio is too high


class Stream(io.BufferedReader):
    """Bytes to read by lines, and how they are packed: `packing` is "" for plain ones."""

    packing = ""

    def packed_words(self) -> str:
        """How much was unpacked so far, in words; "" for plain bytes."""
        if not isinstance(self.raw, _Unpacking):
            return ""
        packed, unpacked = self.raw.num_packed, self.raw.num_unpacked
        return f"{packed:,} bytes of {self.packing} hold {unpacked:,} ({unpacked / max(1, packed):.1f} times as many)."


@contextmanager
def open_bytes(path: Path, digest: _Hash) -> Iterator[Stream]:
    """Open a file for reading from its start. `digest` takes its bytes as they lie on disk, all of them once read.

    Raises OSError and, while it is read, UnreadableError.
    """
    with path.open("rb", buffering=0) as file:
        plain = _Hashing(file, digest)
        magic = b""
        if file.seekable():
            magic = file.read(4)
            file.seek(0)
        packing = next((name for name, start in MAGIC.items() if magic.startswith(start)), "")
        stream = Stream(_Unpacking(plain, packing) if packing else plain, BUFFER_BYTES)
        stream.packing = packing
        yield stream


MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


def sha256_of(path: Path, digest: _Hash) -> None:
    """Feed a file's bytes to `digest`, for readers that jump about in it."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(BUFFER_BYTES):
            digest.update(chunk)


class _Hashing(io.RawIOBase):
    def __init__(self, file: io.FileIO, digest: _Hash) -> None:
        self.file, self.digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        size = self.file.readinto(view)
        self.digest.update(view[:size])
        return size


class _Unpacking(io.RawIOBase):
    """Decompresses members or frames one after the other, and fills every buffer it is given, up to the end."""

    def __init__(self, packed: _Hashing, packing: str) -> None:
        self.packed, self.packing = packed, packing
        # One piece must not unpack to more than some megabytes: zstd can make 128 KiB of four bytes.
        self.piece_bytes = 1 << 14 if packing == "gzip" else 1 << 10
        self.unpacker: Any = None
        self.error: UnreadableError | None = None
        self.ready = memoryview(b"")
        self.rest = b""  # packed bytes after the end of a member
        self.num_packed = self.num_unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view, filled = memoryview(buffer), 0
        while filled < len(view) and (self.ready or self._unpack_after(filled)):
            size = min(len(view) - filled, len(self.ready))
            view[filled : filled + size] = self.ready[:size]
            self.ready = self.ready[size:]
            filled += size
        return filled

    def _unpack_after(self, filled: int) -> bool:
        """`_unpack`, whose error waits until what came before it has been read."""
        try:
            if self.error is None:
                return self._unpack()
        except UnreadableError as error:
            self.error = error
        if self.error and not filled:
            raise self.error
        return False

    def _unpack(self) -> bool:
        """Make more bytes ready; False at the end."""
        while not self.ready:
            piece = self.rest or self.packed.read(self.piece_bytes) or b""
            self.rest = b""
            if not piece:
                if self.unpacker is not None:
                    raise _damaged(f"the {self.packing} data is cut off after {self.num_unpacked} bytes of content.")
                return False
            if self.unpacker is None:
                if not piece.strip(b"\0"):
                    continue  # padding between or after members
                self.unpacker = _new_unpacker(self.packing)
            self.num_packed += len(piece)
            self.ready = memoryview(self._decompress(piece))
            self._check_ratio()
        return True

    def _decompress(self, piece: bytes) -> bytes:
        try:
            content: bytes = self.unpacker.decompress(piece)
        except Exception as error:  # zlib.error, zstandard.ZstdError: raised on as our own
            what = f"the {self.packing} data is damaged after {self.num_unpacked} bytes of content ({error})."
            raise _damaged(what) from error
        if self.unpacker.eof:
            self.rest = self.unpacker.unused_data
            self.num_packed -= len(self.rest)
            self.unpacker = None
        self.num_unpacked += len(content)
        return content

    def _check_ratio(self) -> None:
        if self.num_unpacked > FREE_BYTES and self.num_unpacked > MAX_RATIO * self.num_packed:
            sizes = f"{self.num_unpacked >> 20} MiB from {self.num_packed >> 10} KiB"
            raise _damaged(
                f"the file unpacks to more than {MAX_RATIO} times its size ({sizes}): it may be made to harm."
            )


def _damaged(what: str) -> UnreadableError:
    return UnreadableError(Fault("unreadable_file", what, "Download or pack it again, or unpack it yourself."))


def _new_unpacker(packing: str) -> Any:
    if packing == "gzip":
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()
