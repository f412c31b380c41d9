"""Bodies that come in several pieces: collected, or, if their request was rejected, only counted."""

from service.http.fast.endpoint import Body


class PartialBody:
    """A body that has come in part. head: the bytes before it. whole: (size,), filled as bytes come."""

    def __init__(self, head: bytes, size: int, begun: Body) -> None:
        self.head = head
        self.whole = memoryview(bytearray(size))
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

    Many clients look for a response only once they have sent everything. reason: why it was rejected.
    """

    def __init__(self, reason: str, missing: int) -> None:
        self.reason = reason
        self.missing = missing

    def add(self, data: bytes) -> bytes:
        """Discard what belongs to the body; returns the remainder."""
        taken = min(len(data), self.missing)
        self.missing -= taken
        return data[taken:]
