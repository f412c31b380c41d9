"""When rows of low priority may run on a device that others use. Pure decisions; the time is an argument."""

import math

from service.batching.batch_sizes import LOW_SECONDS

LOW_SHARE = 0.2
LEAST_LOW_SHARE = 0.035
"""While small requests arrive, rows of low priority take at most the first share of the time if they take at
most LOW_SECONDS of a batch; less if they take longer, but never less than the second. A request waits for the
batch that runs when it comes, and without a limit the device is never free. With two callers of /explain the
p99 of /classify at half of the capacity was 1.3 times as long by occlusion (0.5 ms a row), and 8 times by
integrated gradients (1.4 ms). With a share of 0.2 it was 1.0 and 1.5 times; with 0.07 the latter was 1.1 to
1.2 times, with 0.035 1.0 to 1.3 times (`python -m loadtests.explanations`, on two shared cores)."""

QUIET_BATCHES = 10
"""Small requests have ceased to arrive when none came for this many times the time of the last rows of low
priority. At half of the capacity, the next one comes after two such times in the mean."""

SMALL_RECENTLY_SECONDS = 1.0
"""Batches are kept short for this long after the last small request: the next one will wait for one."""


class LowShare:
    """The share of a device's time that rows of low priority take; common to all of its queues.

    last_small: when a small request came to any of them last.
    """

    def __init__(self) -> None:
        self.last_small = -math.inf
        self._last_low = -math.inf
        self._low_seconds = 0.0

    def note_low(self, now: float, seconds: float) -> None:
        """Note that rows of low priority begin to run, which are expected to take `seconds`."""
        self._last_low = now
        self._low_seconds = seconds

    def small_came_recently(self, now: float) -> bool:
        """Whether a small request is to be expected."""
        return now < self.last_small + SMALL_RECENTLY_SECONDS

    def due(self) -> float:
        """Return when rows of low priority may run again."""
        turn = self._last_low + self._low_seconds / share_for(self._low_seconds)
        quiet = min(self._low_seconds * QUIET_BATCHES, SMALL_RECENTLY_SECONDS)
        return min(turn, self.last_small + quiet)


def share_for(seconds: float) -> float:
    """Return the share of rows of low priority that take so long of a batch."""
    return min(LOW_SHARE, max(LEAST_LOW_SHARE, LOW_SHARE * LOW_SECONDS / max(seconds, LOW_SECONDS)))
