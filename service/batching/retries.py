"""When a rejected request should come back. Knows nothing of clocks, randomness or HTTP.

Retry-After counts in whole seconds, so a request that is rejected at a time t can return at t + 1, t + 2 and
so on. It is promised the first of these at which the queue is expected to have room, given the requests that
were promised earlier. If all were promised the same time, they would return together, and most would be
rejected again.
"""

import math
from typing import NamedTuple

import numpy as np

from service.errors import DeadlineUnreachable, QueueFull

MAX_RETRY_SECONDS = 30
"""The longest wait that is promised. Without it, clients that never return, or that return too early and are
promised another time, would delay all others without end."""

OVERLOAD_SECONDS = 2.0
"""An overload is expected to last this long from its first rejection. Until then new requests take what room
there is, so a request that returned earlier would be rejected again."""

CALM_SECONDS = 1.0
"""After this long without a rejection, the next one begins a new overload, and an empty queue ends one."""

ROOM = 0.6
"""A request is promised a time at which the work expected ahead of it is at most this part of what would
just be accepted. The rest is for new requests, and for an error in the pace."""

SPREAD = 1.05
"""Promised work is expected to take this much longer than the pace says."""

_SLOTS_PER_SECOND = 8
_SLOT_SECONDS = 1 / _SLOTS_PER_SECOND
_SLOTS = (MAX_RETRY_SECONDS + 1) * _SLOTS_PER_SECOND
_ROUNDING = 1e-9
"""Seconds by which sums of floats may be off."""
_SLOTS_PASSED = np.arange(1, _SLOTS + 1)


class Refusal(NamedTuple):
    """Why a request is rejected before it is queued.

    late: its deadline could not be met; otherwise the queue has no room.
    allowed_seconds: it would be accepted with this much work ahead of it.
    accepted_after: for rows of low priority, the seconds until only that much work is expected ahead of them.
        None for other rows, whose time to return `Retries` promises.
    """

    why: str
    late: bool = False
    allowed_seconds: float = 0.0
    accepted_after: float | None = None

    def error(self, retry_seconds: float) -> QueueFull:
        """Return the error of a request rejected for this reason."""
        kind = DeadlineUnreachable if self.late else QueueFull
        return kind(self.why, retry_seconds)


class Retries:
    """The work promised to return, in slots of an eighth of a second.

    until: when the last of it returns; -inf if there is none.
    """

    def __init__(self) -> None:
        self.until = -math.inf
        self._slot = 0
        self._promised = np.zeros(_SLOTS)
        self._overloaded_since = -math.inf
        self._last = -math.inf

    def promise(self, now: float, backlog_seconds: float, work_seconds: float, allowed_seconds: float) -> int:
        """Return the seconds after which a rejected request should return, 1..MAX_RETRY_SECONDS.

        backlog_seconds: work that is queued or running. work_seconds: the request's own.
        allowed_seconds: see `Refusal`.
        """
        if now - self._last > CALM_SECONDS:
            self._overloaded_since = now
        self._last = now
        self._forget_before(int(now * _SLOTS_PER_SECOND))
        seconds = self._first_with_room(now, backlog_seconds, ROOM * allowed_seconds)
        self._promised[seconds * _SLOTS_PER_SECOND] += SPREAD * work_seconds
        self.until = max(self.until, now + seconds)
        return seconds

    def note_empty(self, now: float) -> None:
        """Forget all promises if the queue is empty a while after the last rejection.

        Many clients do not obey. Their promises would fill the next 30 s, and others would wait for nobody.
        """
        if now - self._last > CALM_SECONDS:
            self._promised[:] = 0.0
            self.until = -math.inf

    def _forget_before(self, slot: int) -> None:
        """Make `slot` the first one of those that are kept."""
        passed = min(slot - self._slot, _SLOTS)
        if passed > 0:
            self._slot = slot
            self._promised[:-passed] = self._promised[passed:]
            self._promised[-passed:] = 0.0

    def _first_with_room(self, now: float, backlog_seconds: float, room_seconds: float) -> int:
        """Return the first whole second at which the expected work is at most `room_seconds`.

        Until the overload ends, new requests keep the queue as full as it is. The work left after each slot
        follows Lindley (1952): what has arrived, less what could be done, less the lowest value that this
        difference had below zero, because an idle device cannot work ahead.
        """
        full_slots = max(0.0, self._overloaded_since + OVERLOAD_SECONDS - now) * _SLOTS_PER_SECOND
        left = self._promised.cumsum()
        left += backlog_seconds
        left -= _SLOT_SECONDS * np.maximum(_SLOTS_PASSED - full_slots, 0.0)
        left -= np.minimum(np.minimum.accumulate(left), 0.0)
        expected = left[_SLOTS_PER_SECOND - 1 : -1 : _SLOTS_PER_SECOND]
        expected = expected + self._promised[_SLOTS_PER_SECOND::_SLOTS_PER_SECOND]
        with_room = expected <= room_seconds + _ROUNDING
        return int(with_room.argmax()) + 1 if with_room.any() else MAX_RETRY_SECONDS
