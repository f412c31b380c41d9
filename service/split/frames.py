"""Frames between two processes: a JSON header and raw bytes, each preceded by its length.

Knows nothing of what a frame means; `messages` does.
"""

import asyncio
import logging
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import FrameError

logger = logging.getLogger(__name__)

PREFIX = struct.Struct("<III")
"""Before each frame: its kind, the bytes of its header, the bytes of its body."""

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Enough for the cards of a large models folder; a request's header has about 100 bytes."""

JOIN_BYTES = 64 * 1024
"""Frames up to this size are joined: cheaper than a gathering write."""

HIGH_WATER_BYTES = 1024 * 1024


class Frame(NamedTuple):
    """One frame as it was received. body: a view of the received bytes."""

    kind: int
    header: Any
    body: memoryview


def frame_pieces(kind: int, header: object, arrays: Sequence[NDArray[Any]] = ()) -> list[bytes | memoryview]:
    """Return a frame's bytes, in pieces. The arrays must not change until they are written."""
    head = orjson.dumps(header)
    arrays = [np.ascontiguousarray(array) for array in arrays]
    body_bytes = sum(array.nbytes for array in arrays)
    start = PREFIX.pack(kind, len(head), body_bytes)
    if body_bytes <= JOIN_BYTES:
        return [b"".join((start, head, *(array.data for array in arrays)))]
    return [start, head, *(array.reshape(-1).view(np.uint8).data for array in arrays if array.size)]


class FrameReader:
    """Cuts a stream of bytes into frames. Never holds more than one frame and one read.

    max_body_bytes: a frame with more is rejected before its body is held; it may grow at any time.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self._chunks: list[bytes | memoryview] = []
        self._held = 0
        self._needed = PREFIX.size

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that these bytes complete.

        Raises FrameError if the peer exceeds a limit or the header is not JSON.
        """
        self._chunks.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return
        whole = memoryview(data if len(self._chunks) == 1 else b"".join(self._chunks))
        start = 0
        while (end := self._end(whole, start)) <= len(whole):
            yield _frame(whole[start:end])
            start = end
        self._needed = end - start
        self._held = len(whole) - start
        self._chunks = [whole[start:]] if self._held else []

    def _end(self, whole: memoryview, start: int) -> int:
        """Return where the frame at `start` ends, or its prefix if that is incomplete."""
        if len(whole) - start < PREFIX.size:
            return start + PREFIX.size
        _, header_bytes, body_bytes = PREFIX.unpack_from(whole, start)
        if header_bytes > MAX_HEADER_BYTES or body_bytes > self.max_body_bytes:
            raise FrameError(
                f"frame has {header_bytes} + {body_bytes} bytes, expected at most "
                f"{MAX_HEADER_BYTES} + {self.max_body_bytes}"
            )
        return start + PREFIX.size + int(header_bytes) + int(body_bytes)


def _frame(whole: memoryview) -> Frame:
    kind, header_bytes, _ = PREFIX.unpack_from(whole)
    body = PREFIX.size + header_bytes
    try:
        return Frame(kind, orjson.loads(whole[PREFIX.size : body]), whole[body:])
    except orjson.JSONDecodeError as error:
        raise FrameError(f"frame's header is not JSON: {error}") from None


class Owner(Protocol):
    """The owner of a link, which handles its events."""

    def link_opened(self, link: "Link", /) -> None:
        """Handle the opening of a link: frames can be sent now."""
        ...

    def link_lost(self, link: "Link", /) -> None:
        """Handle the end of a link, for whatever reason."""
        ...

    def frame_received(self, link: "Link", frame: Frame, /) -> None:
        """Handle a frame. Raises FrameError if it is invalid or unexpected, which closes the link."""
        ...


class Link(asyncio.Protocol):
    """One end of a connection that carries frames.

    hold_back: stop reading while the peer does not read our writes. Only on one end; on both it could
        deadlock.
    first: what was read from the connection before its transport took over.
    """

    def __init__(self, owner: Owner, hold_back: bool = False, first: bytes = b"") -> None:
        self._owner = owner
        self._first = first
        self._reader = FrameReader(0)
        self._hold_back = hold_back
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._pieces: list[bytes | memoryview] = []

    def allow_body(self, max_body_bytes: int) -> None:
        """Accept frames with bodies up to this size; what was allowed before stays allowed."""
        self._reader.max_body_bytes = max(self._reader.max_body_bytes, max_body_bytes)

    def send(self, kind: int, header: object, arrays: Sequence[NDArray[Any]] = ()) -> None:
        """Send a frame, or drop it if the link is closed.

        The frames of one iteration of the event loop are written in one call, and so read in one. After a
        batch there are many: this halves the cost of a frame.
        """
        if self._transport is None or self._transport.is_closing():
            return
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self.flush)
        self._pieces += frame_pieces(kind, header, arrays)

    @property
    def is_writable(self) -> bool:
        """Whether the peer has read most of what was sent; also true when the link is closed."""
        return self._writable.is_set()

    async def writable(self) -> None:
        """Wait until the peer has read most of what was sent; returns at once when the link is closed."""
        if not self._writable.is_set():
            await self._writable.wait()

    def close(self) -> None:
        """Close the link once everything is written."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the link now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class does not derive from it
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._writable.set()
        self._owner.link_opened(self)
        if self._first:
            self.data_received(self._first)
            self._first = b""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            for frame in self._reader.feed(data):
                self._owner.frame_received(self, frame)
        except FrameError as error:
            logger.error("a connection between processes is closed: %s", error)
            self.abort()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.clear()
        if self._hold_back and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.set()
        if self._hold_back and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        del exc
        self._writable.set()
        self._owner.link_lost(self)

    def flush(self) -> None:
        """Write what was sent in this iteration of the event loop now, instead of at its end."""
        pieces, self._pieces = self._pieces, []
        if self._transport is None or self._transport.is_closing() or not pieces:
            return
        if sum(map(len, pieces)) <= JOIN_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)
