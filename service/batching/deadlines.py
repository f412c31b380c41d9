"""Where deadlines are enforced: one timer per queue, which expires the requests whose deadline has passed.

A request that would be late is rejected earlier, by `pace`.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable

from service.batching.items import Item
from service.batching.queue import BatchQueue
from service.batching.request import Outcome
from service.errors import DeadlineExceeded

Settle = Callable[[Item, Outcome], None]


class Deadlines:
    """The deadlines of a queue's requests. Lives on the event loop.

    lock: guards the queue. earliest: the deadline that the timer is set to, inf if none is.
    """

    def __init__(self, queue: BatchQueue, lock: threading.Lock) -> None:
        self.earliest = math.inf
        self._queue = queue
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline: float, settle: Settle) -> None:
        """Set the timer to a deadline that is earlier than `earliest`. settle: delivers an item's outcome."""
        self.close()
        self.earliest = deadline
        # Only the timer refers to `settle`: otherwise a reference cycle would keep the model of a closed
        # queue.
        self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._expire, settle)

    def close(self) -> None:
        """Cancel the timer: it would keep the model alive for a request that has its outcome."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self, settle: Settle) -> None:
        self._timer, self.earliest = None, math.inf
        now = time.monotonic()
        with self._lock:
            expired = self._queue.expire(now)
            next_deadline = self._queue.next_deadline
        for item in expired:
            queued = now - item.enqueued
            message = f"{item.rows} rows were queued for {queued:.3f} s, their deadline has passed"
            settle(item, DeadlineExceeded(message))
        if next_deadline < self.earliest:
            self.watch(next_deadline, settle)
