"""Which batches run on the event loop: pure decisions, from what a batch is expected to take.

Knows nothing of loops, threads or models; `service.batching.device` acts on what is decided here.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

INLINE_ROWS = 64
"""Where the event loop can run so many rows, or the model's largest batch, in the time that it is given, it
runs all, in batches of no more than fit: with so many a row takes nearly as little as it ever will."""

TURN_SECONDS = 0.0025
"""After a refusal the next batch on the loop is cut to so much, or INLINE_ROWS: who is refused should know it
at once, and waits unread meanwhile. It is not the rule, as it costs what many rows in one batch save, 5 to
12 % of the answers to bodies of 16 to 256 images."""


@dataclass(frozen=True, slots=True)
class InlineRows:
    """The largest batches that run on the event loop.

    rows: 0 where none does. refusing_rows: to what larger ones are cut after a refusal, otherwise to `rows`;
        None where larger ones are not cut, but run on the thread.
    """

    rows: int
    refusing_rows: int | None

    def most(self, *, refusing: bool) -> int | None:
        """To how many rows the next batch is cut, if it is. refusing: whether there was a refusal."""
        if self.refusing_rows is None:
            return None
        return self.refusing_rows if refusing else self.rows


def inline_rows(
    seconds_for: Callable[[int], float], most: int, inline_seconds: float, brief_seconds: float
) -> InlineRows:
    """Which batches run on the event loop.

    seconds_for: what a batch of so many rows takes, up to `most`. The rest is as `Device` says.
    """
    sizes = range(1, most + 1)
    enough = min(INLINE_ROWS, most)
    rows = bisect.bisect_right(sizes, inline_seconds, key=seconds_for)
    if rows >= enough:
        return InlineRows(rows, max(enough, bisect.bisect_right(sizes, TURN_SECONDS, key=seconds_for)))
    return InlineRows(bisect.bisect_right(sizes, min(inline_seconds, brief_seconds), key=seconds_for), None)
