"""The files of a multipart form (RFC 7578). Knows nothing of HTTP beyond the form's own headers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidInput

MAX_FIELDS = 16

_SILENT = logging.Logger("multipart", logging.CRITICAL)


@dataclass(slots=True)
class Part:
    """A part of a form. kind: its declared media type, in lower case; empty if it has none."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        """The part's body."""
        return b"".join(self.pieces)

    @property
    def kind(self) -> str:
        """The declared media type, in lower case; empty if there is none."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    def disposition(self) -> Mapping[bytes, bytes]:
        """Return the parameters of Content-Disposition."""
        return parse_options_header(self.headers.get(b"content-disposition", b""))[1]

    def is_file(self) -> bool:
        """Whether the part has a file name, plain or extended (`filename*=`, as some clients send)."""
        header = self.headers.get(b"content-disposition", b"").lower()
        return b"filename" in self.disposition() or b"filename*=" in header.replace(b" ", b"")


def read_files(content_type: str, body: bytes, most: int) -> list[Part]:
    """Return a form's files, at least one. content_type: the header. Raises InvalidInput."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidInput(
            "form cannot be read: its Content-Type has no boundary, expected one (boundary=...)"
        )
    reader = _Reader(most)
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        parser.logger = _SILENT  # it would warn of every malformed form, beside the error that it raises
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidInput(f"form cannot be read: {error}") from None
    if not reader.ended:
        raise InvalidInput("form ends early, expected its last boundary")
    fields = [part for part in reader.parts if not part.is_file()]
    files = [part for part in reader.parts if part.is_file()]
    if fields or not files:
        names = [each.disposition().get(b"name", b"").decode("utf-8", "replace")[:40] for each in fields[:5]]
        raise InvalidInput(f"form has {len(files)} files and the fields {names}, expected only files")
    return files


class _Reader:
    """Collects the parts that the parser finds."""

    def __init__(self, most: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._most = most
        self._name = self._value = b""

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin_part,
            "on_part_data": self._add_data,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        if len(self.parts) >= self._most + MAX_FIELDS:
            raise InvalidInput(f"form cannot be read: it has over {self._most} files, expected at most that")
        self.parts.append(Part())

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].pieces.append(data[start:end])

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self.parts[-1].headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end(self) -> None:
        self.ended = True
