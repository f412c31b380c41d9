"""How long batches are expected to take: the time at warm-up, or less once faster batches have run.

While a model is warmed up, other work may run, in this process and in others, and only ever adds time: on two
cores the first of the shipped models, `cnn`, seemed to take 1.7 ms a row at every start, and took 0.55 ms.
"""

import itertools
from collections.abc import Callable

FASTER = 0.9
"""A batch changes what is expected of the next ones if it takes less than this fraction of it."""


class BatchSeconds:
    """The expected time of a batch by its rows, 1 to `most`; never less for more rows.

    seconds_for: how long a batch of a given number of rows took at warm-up, up to `most` rows.
    below: by rows; a batch that takes fewer seconds is worth a call of `learn`.
    """

    def __init__(self, seconds_for: Callable[[int], float], most: int) -> None:
        largest_first = itertools.accumulate(map(seconds_for, range(most, 0, -1)), min)
        self._seconds = [0.0, *reversed(list(largest_first))]
        self.below = [FASTER * each for each in self._seconds]

    def of(self, rows: int) -> float:
        """Return the expected seconds of a batch."""
        return self._seconds[rows]

    def learn(self, rows: int, seconds: float) -> None:
        """Note that a batch took this long: a smaller one takes no longer."""
        known = self._seconds
        for fewer in range(rows, 0, -1):
            if known[fewer] <= seconds:
                break
            known[fewer] = seconds
            self.below[fewer] = FASTER * seconds
