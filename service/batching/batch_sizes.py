"""How large batches are, and which run on the event loop: decided from how long one is expected to take.

Knows nothing of loops, threads or models; `device` acts on what is decided here.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

ON_LOOP_ROWS = 64
"""If the event loop can run this many rows, or the model's largest batch, within its budget, it runs all of
the model's batches, cut to fit: with this many rows, a row costs nearly as little as it ever will."""

REJECTING_BATCH_SECONDS = 0.0025
"""After a rejection the next batch on the loop is cut to this time, or to ON_LOOP_ROWS: requests about to be
rejected sit unread while it runs. Other batches are not cut to it, because smaller batches cost more per row:
5 to 12 % of the responses to bodies of 16 to 256 images."""

MIXED_BATCH_SECONDS = 0.002
"""A batch with rows of small and of large requests is cut to this time, or to MIXED_ROWS."""

MIXED_ROWS = 16
"""Fewer rows would cost too much each."""

LOW_SECONDS = 0.0005
"""While small requests arrive, rows of low priority take at most this time of a batch: nobody is in a hurry
for them, and each request would wait for them."""


@dataclass(frozen=True, slots=True)
class OnLoopRows:
    """The largest batches that run on the event loop.

    rows: 0 if none does.
    rejecting_rows: larger batches are cut to this after a rejection, and to `rows` otherwise; None if they
        are not cut, but run on the device thread.
    """

    rows: int
    rejecting_rows: int | None

    def most(self, *, rejecting: bool) -> int | None:
        """Return the rows that the next batch is cut to, or None.

        rejecting: a request was rejected since the last batch.
        """
        return self.rejecting_rows if rejecting or self.rejecting_rows is None else self.rows


def on_loop_rows(
    seconds_for: Callable[[int], float], most: int, on_loop_seconds: float, brief_seconds: float
) -> OnLoopRows:
    """Return which batches run on the event loop.

    seconds_for: how long a batch of a given number of rows takes, up to `most` rows.
    on_loop_seconds, brief_seconds: the budgets, see `service.batching.device.Device`.
    """
    enough = min(ON_LOOP_ROWS, most)
    rows = _rows_within(on_loop_seconds, seconds_for, most)
    if rows >= enough:
        brief = _rows_within(REJECTING_BATCH_SECONDS, seconds_for, most)
        return OnLoopRows(rows, max(enough, brief))
    return OnLoopRows(_rows_within(min(on_loop_seconds, brief_seconds), seconds_for, most), None)


def mixed_rows(seconds_for: Callable[[int], float], most: int) -> int:
    """Return the rows that a batch is cut to while small requests arrive; see `BatchQueue`.

    seconds_for: how long a batch of a given number of rows takes, up to `most` rows.
    """
    rows = _rows_within(MIXED_BATCH_SECONDS, seconds_for, most)
    return min(most, max(rows, MIXED_ROWS))


def low_rows(seconds_for: Callable[[int], float], most: int) -> int:
    """Return the rows of low priority that a batch has at most while small requests arrive."""
    return max(1, _rows_within(LOW_SECONDS, seconds_for, most))


def _rows_within(seconds: float, seconds_for: Callable[[int], float], most: int) -> int:
    """Return the rows of the largest batch, of at most `most` rows, that takes no longer than `seconds`."""
    return bisect.bisect_right(range(1, most + 1), seconds, key=seconds_for)
