"""When a rejected request should come back. Knows nothing of clocks, randomness or HTTP.

Each rejected request is promised the time after those promised before it. If all were promised the same time,
they would return together, and most would be rejected again.
"""

import math
from typing import NamedTuple

from service.errors import DeadlineUnreachable, QueueFull

MAX_RETRY_SECONDS = 30.0
"""The longest wait that is promised. Without it, clients that never return, or that return too early and are
promised another time, would delay all others without end."""

SPREAD = 1.05
"""Promises are this much further apart than the work takes, because clients return on whole seconds and new
clients arrive in between."""


class Refusal(NamedTuple):
    """Why a request is rejected before it is queued.

    late: its deadline could not be met; otherwise the queue has no room.
    allowed_seconds: it would be accepted with this much work ahead of it.
    """

    why: str
    late: bool = False
    allowed_seconds: float = 0.0

    def error(self, retry_seconds: float) -> QueueFull:
        """Return the error of a request rejected for this reason."""
        kind = DeadlineUnreachable if self.late else QueueFull
        return kind(self.why, retry_seconds)


class Retries:
    """The times promised to rejected requests.

    until: when the promised work will be done; -inf if nothing is promised.
    """

    def __init__(self) -> None:
        self.until = -math.inf

    def forget(self) -> None:
        """Drop all promises. An empty queue shows that they lie further ahead than the work does."""
        self.until = -math.inf

    def promise(
        self, now: float, backlog_seconds: float, work_seconds: float, allowed_seconds: float
    ) -> float:
        """Return the seconds after which a rejected request should return, 0..MAX_RETRY_SECONDS.

        backlog_seconds: work that is queued or running. work_seconds: the request's own.
        allowed_seconds: see `Refusal`.
        """
        begins = max(self.until, now + backlog_seconds)
        self.until = min(begins + SPREAD * work_seconds, now + MAX_RETRY_SECONDS)
        return min(max(0.0, begins - now - allowed_seconds), MAX_RETRY_SECONDS)
