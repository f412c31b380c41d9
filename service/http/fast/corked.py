"""A transport that writes once per iteration of the event loop, however often it is written to."""

import asyncio
from typing import Any


class CorkedTransport:
    """A transport that holds what is written until the iteration of the event loop ends.

    All else is the inner transport's. Closing it writes what was held first; aborting drops it.
    held: what was written in this iteration.
    """

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.held: list[bytes] = []
        self._inner = inner
        self._loop = loop

    def write(self, data: bytes) -> None:
        """Hold the bytes."""
        if not self.held:
            self._loop.call_soon(self.flush)
        self.held.append(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self.flush()
        self._inner.close()

    def flush(self) -> None:
        """Write what is held now."""
        if self.held:
            data = b"".join(self.held)
            self.held.clear()
            if not self._inner.is_closing():
                self._inner.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
