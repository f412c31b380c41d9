"""Bodies as they arrive: framed by a length or in chunks, collected for the fast path or handed on for ASGI.

Memory grows with what has arrived, never with what was announced.
"""

import re
from typing import Protocol

import numpy as np

from service.errors import QueueFull
from service.http.fast.endpoint import Body
from service.http.fast.head import MalformedRequest

MAX_CHUNK_LINE = 256
"""The longest line with a chunk's size; its extensions are ignored."""

MAX_TRAILER_BYTES = 8192
"""The most bytes of trailers, which are read and dropped."""

FREE_OVERHEAD_BYTES = 16 * 1024
"""Chunks may have this many bytes of framing, and one more for each byte of content: 250 kB of chunks of one
byte would hold the event loop for a tenth of a second."""

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*")


class Framing(Protocol):
    """Where a body ends.

    remaining: bytes that are still to come, None if that is not known. done: whether the body is complete.
    """

    remaining: int | None
    done: bool

    def split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the content in `data`, and the bytes behind the body. Raises MalformedRequest."""
        ...


class SizedFraming:
    """A body of a known length."""

    def __init__(self, size: int) -> None:
        self.remaining: int | None = size
        self.done = size == 0

    def split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """See `Framing`."""
        assert self.remaining is not None
        content = data if len(data) <= self.remaining else data[: self.remaining]
        self.remaining -= len(content)
        self.done = self.remaining == 0
        return [content] if content else [], data[len(content) :]


class ChunkedFraming:
    """A body in chunks (RFC 9112, section 7.1). Lines end with CRLF and nothing else."""

    def __init__(self) -> None:
        self.remaining: int | None = None
        self.done = False
        self._line = b""
        self._missing = 0  # bytes of the current chunk's content
        self._at_end_of_chunk = False  # its CRLF is to come
        self._in_trailers = False
        self._content_bytes = 0
        self._overhead = 0

    def split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """See `Framing`."""
        content: list[bytes] = []
        data, self._line = self._line + data, b""
        at = 0
        while at < len(data) and not self.done:
            if self._missing:
                piece = data[at : at + self._missing]
                content.append(piece)
                at += len(piece)
                self._missing -= len(piece)
                self._content_bytes += len(piece)
                self._at_end_of_chunk = not self._missing
                continue
            end = data.find(b"\r\n", at, at + MAX_TRAILER_BYTES)
            line = data[at:end] if end >= 0 else data[at : at + MAX_TRAILER_BYTES]
            self._check(line, whole=end >= 0)
            if end < 0:
                self._line = line
                return content, b""
            self._end_line(line)
            at = end + 2
        return content, data[at:]

    def _check(self, line: bytes, *, whole: bool) -> None:
        """Raise MalformedRequest as soon as a line is wrong or too long."""
        start = line if whole else line.removesuffix(b"\r")
        if self._at_end_of_chunk:
            if start:
                raise MalformedRequest(f"chunk is followed by {start[:8]!r}, expected CRLF")
        elif self._in_trailers:
            if self._overhead + len(line) > MAX_TRAILER_BYTES:
                raise MalformedRequest(f"trailers have over {MAX_TRAILER_BYTES} bytes", 431)
            if whole and line and not _TRAILER.fullmatch(line):
                raise MalformedRequest(f"trailer is {line[:40]!r}, expected name: value")
        elif len(line) > MAX_CHUNK_LINE:
            raise MalformedRequest(f"chunk's size line has over {MAX_CHUNK_LINE} bytes")
        elif not _CHUNK_SIZE.fullmatch(start) and (whole or start):
            raise MalformedRequest(f"chunk's size is {line[:40]!r}, expected hexadecimal digits")

    def _end_line(self, line: bytes) -> None:
        if self._at_end_of_chunk:
            self._at_end_of_chunk = False
            return
        self._overhead += len(line) + 4
        if self._in_trailers:
            self.done = not line
            return
        if self._overhead > FREE_OVERHEAD_BYTES + self._content_bytes:
            raise MalformedRequest(
                f"chunks have {self._content_bytes} bytes in all and {self._overhead} bytes of framing, "
                "expected larger chunks"
            )
        match = _CHUNK_SIZE.fullmatch(line)
        assert match is not None
        self._missing = int(match[1], 16)
        if not self._missing:
            self._in_trailers, self._overhead = True, 0


def framing_of(content_length: int | None) -> Framing:
    """Return the framing of a body. content_length: None if it is chunked."""
    return ChunkedFraming() if content_length is None else SizedFraming(content_length)


class PartialBody:
    """A body on the fast path that has come in part. head: the bytes before it.

    memory: of `size` bytes, if it should be received into some.
    whole: (size,), filled as bytes come; pages that nothing was written to take no memory.
    """

    def __init__(self, head: bytes, size: int, begun: Body, memory: memoryview | None = None) -> None:
        self.head = head
        self.whole = np.empty(size, np.uint8).data if memory is None else memory
        self.missing = size
        self.add(begun)

    def add(self, data: Body) -> bytes:
        """Take what belongs to the body; returns the remainder."""
        filled = len(self.whole) - self.missing
        taken = min(len(data), self.missing)
        self.whole[filled : filled + taken] = data[:taken]
        self.missing -= taken
        return bytes(data[taken:])


class RejectedBody:
    """The body of a request rejected at its head: counted and discarded.

    Many clients look for a response only once they have sent everything. error: why it was rejected.
    """

    def __init__(self, error: QueueFull, missing: int) -> None:
        self.error = error
        self.missing = missing

    def add(self, data: bytes) -> bytes:
        """Discard what belongs to the body; returns the remainder."""
        taken = min(len(data), self.missing)
        self.missing -= taken
        return data[taken:]
