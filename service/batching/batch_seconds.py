"""How long batches are expected to take: the time at warm-up, or less once faster batches have run.

While a model is warmed up, other work may run, in this process and in others, and only ever adds time: on two
cores the first of the shipped models, `cnn`, seemed to take 1.7 ms a row at every start, and took 0.55 ms.

A size that seems to take too long may never run, and its own time would never be corrected: while small
requests arrive, batches are cut to what takes 2 ms (`service.batching.batch_sizes`). So smaller batches
correct it too.
"""

import bisect
import math
from collections.abc import Callable, Sequence

FASTER = 0.9
"""A batch changes what is expected of the next ones if it takes less than this fraction of it."""


class BatchSeconds:
    """The expected time of a batch by its rows; never less for more rows.

    seconds_for: how long a batch of a given number of rows took at warm-up.
    sizes: what batches are padded to, ascending; the last is the most rows that a batch has.
    below: by rows; a batch that takes fewer seconds is worth a call of `learn`.
    """

    def __init__(self, seconds_for: Callable[[int], float], sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._seconds = [0.0] + sizes[-1] * [math.inf]
        self.below = list(self._seconds)
        for size in sizes:
            self.learn(size, seconds_for(size))

    def of(self, rows: int) -> float:
        """Return the expected seconds of a batch."""
        return self._seconds[rows]

    def learn(self, rows: int, seconds: float) -> None:
        """Note that a batch took this long.

        A smaller batch takes no longer. A larger one takes no longer than the batches of this size that would
        hold its rows: on a GPU slower sizes are not used, and on a CPU no shipped model has any
        (`service.onnx.engine`).
        """
        if seconds >= self._seconds[rows]:
            return
        sizes = self._sizes[bisect.bisect_left(self._sizes, rows) :]
        for size in sizes:
            self._lower(size, math.ceil(size / sizes[0]) * seconds)

    def _lower(self, rows: int, seconds: float) -> None:
        """Expect at most `seconds` for batches of up to `rows` rows."""
        known = self._seconds
        for fewer in range(rows, 0, -1):
            if known[fewer] <= seconds:
                break
            known[fewer] = seconds
            self.below[fewer] = FASTER * seconds
