"""When a rejected request should come back. Knows nothing of clocks, randomness or HTTP.

Told one after another: each rejected request is promised the time behind those promised before it. If all
were told the same, they would all return at the same moment, and most would be rejected again.
"""

import math
from typing import NamedTuple

from service.errors import DeadlineUnreachable, QueueFull

MAX_RETRY_SECONDS = 30.0
"""The longest wait that is promised: clients that never return, or return at once and are promised a time
again and again, would otherwise delay all others for ever."""

SPREAD = 1.05
"""The returning work is spread over this much more time than it takes, because clients return on whole
seconds, and new ones come in between."""


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
    """The work that rejected requests will bring when they return."""

    def __init__(self) -> None:
        self._until = -math.inf

    def forget(self) -> None:
        """Forget what was promised: the queue is empty, so the clients have not waited for it."""
        self._until = -math.inf

    def promise(
        self, now: float, backlog_seconds: float, work_seconds: float, allowed_seconds: float
    ) -> float:
        """Return the seconds after which a rejected request should return, 0..MAX_RETRY_SECONDS.

        backlog_seconds: work that is queued or running. work_seconds: the request's own.
        allowed_seconds: see `Refusal`.
        """
        begins = max(self._until, now + backlog_seconds)
        self._until = min(begins + SPREAD * work_seconds, now + MAX_RETRY_SECONDS)
        return min(max(0.0, begins - now - allowed_seconds), MAX_RETRY_SECONDS)
