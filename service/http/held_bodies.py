"""The bodies that are held until they are decoded, and the bound on their bytes.

A body counts from its first byte until its rows are read. Knows nothing of connections or decoders.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import BuffersFull


class HeldBodies:
    """The bodies of a process. held: their bytes, without those of the large one.

    One body at a time may exceed the bound, or a body larger than it could never be decoded.
    """

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most
        self._large: HeldBody | None = None

    @contextmanager
    def hold(self) -> Iterator["HeldBody"]:
        """Hold a body, which has no bytes yet, until the block ends."""
        body = HeldBody(self)
        try:
            yield body
        finally:
            if self._large is body:
                self._large = None
            else:
                self.held -= body.size

    def add(self, body: "HeldBody", size: int) -> None:
        """Count more bytes of a body. Raises BuffersFull."""
        if self._large is not body and self.held + size > self._most:
            if self._large is not None:
                raise BuffersFull(
                    f"bodies of {self.held + self._large.size} bytes are waiting to be decoded, expected at "
                    f"most {self._most} and one more body"
                )
            self._large = body
            self.held -= body.size
        body.size += size
        if self._large is not body:
            self.held += size


class HeldBody:
    """A body that is held. size: its bytes so far."""

    def __init__(self, bodies: HeldBodies) -> None:
        self.size = 0
        self._bodies = bodies

    def add(self, piece: bytes) -> None:
        """Count another piece. Raises BuffersFull if all bodies together have too many bytes."""
        self._bodies.add(self, len(piece))
