"""When rows of low priority may run on a device that others use. Pure decisions; the time is an argument."""

import math

LOW_SHARE = 0.02
"""While small requests arrive, rows of low priority take at most this share of the time.

Without a limit the device is never free, so each small request waits for the batch that runs when it comes:
with two callers of /explain, the p99 of /classify at half of the capacity was 1.3 times as long by occlusion
(0.55 ms a row), and 8 times by integrated gradients (1.8 ms). With this share it was 1.04 to 1.08 times
as long by the three methods, and with 0.025 1.11 times (`python -m loadtests.explanations`, on two cores;
docs/explanations.md has the intervals). An explanation must still end before its deadline: 170 rows of 2 ms
take 17 s at this share."""

QUIET_BATCHES = 20
"""Small requests count as arriving until none has come for this many times as long as the last rows of low
priority took. At half of the capacity one comes every two or three such times in the mean: with 10 of them,
pauses that were chance gave occlusion half as much again as its share."""

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
        self._turn = now + seconds / LOW_SHARE
        self._quiet_seconds = min(seconds * QUIET_BATCHES, SMALL_RECENTLY_SECONDS)

    def note_ended(self, began: float, seconds: float) -> None:
        """Note how long rows of low priority took: beside a load generator, 1.5 times the expected time."""
        self._turn = max(self._turn, began + seconds / LOW_SHARE)

    def small_came_recently(self, now: float) -> bool:
        """Whether a small request is to be expected."""
        return now < self.last_small + SMALL_RECENTLY_SECONDS

    def due(self) -> float:
        """Return when rows of low priority may run again."""
        return min(self._turn, self.last_small + self._quiet_seconds)
