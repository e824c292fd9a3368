"""A multipart form as a stream: its small fields, and the bytes of its one file as they arrive.

Not here: reading the request, where the bytes go (serve.intake). Nothing of the file is held here, and a field, a
header and their number have limits, so that no form takes memory before it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tunesmith.serve.wire.errors import RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 32
MAX_FIELD_BYTES = 4096
MAX_HEADER_BYTES = 8192  # of one part
PLAIN = ("", "binary", "8bit", "7bit")  # ways to send bytes as they are


class FormReader:
    """`feed` gives the pieces of the file that a piece of the body holds; `fields` and `filename` fill on the way."""

    def __init__(self, content_type: str, *, file_field: str) -> None:
        """Raises RequestError (415) for another kind of body."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            raise RequestError("The body must be sent as multipart/form-data.", status=415)
        if not options.get(b"boundary"):
            raise _broken("its content-type names no boundary")
        self.file_field = file_field
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.has_file = self.is_whole = False
        self._headers: dict[str, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._header_bytes = self._parts = 0
        self._field: str | None = None  # being read; None: the file
        self._text = bytearray()
        self._pieces: list[bytes] = []
        try:
            self._parser = MultipartParser(options[b"boundary"], self._callbacks())
        except FormParserError as error:
            raise _broken("its boundary is too long") from error

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises RequestError (400) where the form is broken or beyond its limits."""
        self._pieces = []
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _broken("it breaks the form's rules") from error
        return self._pieces

    def end(self) -> None:
        """Raises RequestError (400) when the body ended before the form, or there is no file in it."""
        if not self.is_whole:
            raise _broken("it ends before the form does")
        if not self.has_file:
            raise RequestError(f"The form has no '{self.file_field}'.", param=self.file_field)

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise _broken(f"it has more than {MAX_FIELDS} fields")
        self._headers = {}
        self._header_bytes = 0

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value += data[start:end]

    def _count_header(self, more: int) -> None:
        self._header_bytes += more
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _broken(f"a field's headers are longer than {MAX_HEADER_BYTES} bytes")

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b"").decode("latin-1"))
        name = options.get(b"name", b"").decode(errors="replace")
        if self._headers.get("content-transfer-encoding", b"").strip().lower().decode("latin-1") not in PLAIN:
            raise _broken("a field is sent in another encoding than as it is")
        if name in self.fields or (name == self.file_field and self.has_file):
            raise _broken("a field is given twice")
        self._field = None if name == self.file_field else name
        if self._field is None:
            self.has_file = True
            self.filename = options[b"filename"].decode(errors="replace") if b"filename" in options else None

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._pieces.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise _broken(f"a field is longer than {MAX_FIELD_BYTES} bytes")

    def _part_end(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._text.decode(errors="replace")
            self._text = bytearray()

    def _end(self) -> None:
        self.is_whole = True


def _broken(why: str) -> RequestError:
    return RequestError(f"The body is no form that can be read: {why}.")
