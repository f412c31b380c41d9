"""Memory for large bodies that is used again, because fresh memory costs a page fault per page.

Knows nothing of HTTP or models.
"""

import asyncio
import weakref
from collections import deque

import numpy as np

from service.memory import LARGE_BYTES

KEPT_BLOCKS = {1024 * 1024: 16, 4 * 1024 * 1024: 4}
"""How many free blocks are kept, by their size: 32 MiB in all, and only pages once written to are resident.
The larger size holds 4,096 MNIST images, the most in one request by default."""

IDLE_SECONDS = 10.0


class RecycledMemory:
    """Blocks that are free again once nothing refers to the body that was in them. Lives on the event loop.

    A body of up to LARGE_BYTES gets none: the C library keeps such memory itself. A larger body than the
    largest block gets none either. Free blocks go back to the system when no body asked for one in
    `idle_seconds` to twice that.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        # Bodies may become garbage in any thread: appending to a deque and popping from it are atomic, and a
        # full one drops its oldest block.
        self._free = {size: deque[memoryview](maxlen=kept) for size, kept in KEPT_BLOCKS.items()}
        self._idle_seconds = idle_seconds
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def kept_bytes(self) -> int:
        """The size of all free blocks."""
        return sum(size * len(blocks) for size, blocks in self._free.items())

    def empty(self, size: int) -> memoryview | None:
        """Return (size,) bytes with any contents, an earlier body's among them; None if it gets none."""
        block_bytes = next((each for each in self._free if size <= each), None)
        if size <= LARGE_BYTES or block_bytes is None:
            return None
        free = self._free[block_bytes]
        block = free.pop() if free else np.empty(block_bytes, np.uint8).data
        # Not a view of another array: its views would refer to that one, and this one would be garbage.
        array = np.frombuffer(block, np.uint8, size)
        weakref.finalize(array, free.append, block).atexit = False
        self._asked = True
        if self._timer is None:
            self._watch()
        return array.data

    def close(self) -> None:
        """Give the free blocks back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._give_back()

    def _watch(self) -> None:
        self._asked = False
        self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._look)

    def _look(self) -> None:
        if not self._asked:
            self._give_back()
        self._watch()  # always: a body may outlive the idle time, and its block is free only then

    def _give_back(self) -> None:
        for blocks in self._free.values():
            blocks.clear()
