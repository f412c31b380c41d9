"""When rows of low priority may run on a device that others use. Pure decisions; the time is an argument."""

import math

from service.batching.batch_sizes import LOW_SECONDS

LOW_SHARE = 0.2
"""While small requests arrive, rows of low priority take at most this share of the time if they take at most
LOW_SECONDS of a batch. The share of slower rows is smaller, in inverse proportion to their time.

Without a limit the device is never free, so each small request waits for the batch that runs when it comes.
With two callers of /explain, the p99 of /classify at half of the capacity was then 1.3 times as long by
occlusion (0.5 ms a row), and 8 times by integrated gradients (1.4 ms). A share of 0.2 for both made that 1.0
and 1.5 times (`python -m loadtests.explanations`, on two shared cores)."""

LEAST_LOW_SHARE = 0.035
"""The share is never smaller, however slow the rows are: an explanation has to end before its deadline. With
0.07, integrated gradients still made the p99 1.1 to 1.2 times as long, with 0.035 1.0 to 1.3 times."""

QUIET_BATCHES = 10
"""Small requests count as arriving until none has come for this many times as long as the last rows of low
priority took. At half of the capacity, one comes every two such times in the mean."""

SMALL_RECENTLY_SECONDS = 1.0
"""Batches are kept short for this long after the last small request, because the next one will wait for one
of them."""


class LowShare:
    """The share of a device's time that rows of low priority take; common to all of its queues.

    last_small: when a small request came to any of them last.
    """

    def __init__(self) -> None:
        self.last_small = -math.inf
        self._turn = -math.inf
        self._quiet_seconds = 0.0

    def note_low(self, now: float, seconds: float) -> None:
        """Note that rows of low priority begin to run, which are expected to take `seconds`."""
        self._turn = now + seconds / share_for(seconds)
        self._quiet_seconds = min(seconds * QUIET_BATCHES, SMALL_RECENTLY_SECONDS)

    def small_came_recently(self, now: float) -> bool:
        """Whether a small request is to be expected."""
        return now < self.last_small + SMALL_RECENTLY_SECONDS

    def due(self) -> float:
        """Return when rows of low priority may run again."""
        return min(self._turn, self.last_small + self._quiet_seconds)


def share_for(seconds: float) -> float:
    """Return the largest share of the time for rows of low priority that take `seconds` of a batch."""
    return max(LEAST_LOW_SHARE, LOW_SHARE * LOW_SECONDS / max(seconds, LOW_SECONDS))
