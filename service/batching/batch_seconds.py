"""How long batches are expected to take: as long as at warm-up, or less once they are seen to.

While a model is warmed up the process imports and loads other things, which only ever adds time: on two cores
the first of the shipped models, `cnn`, seemed to take 1.7 ms a row at every start, and took 0.55 ms.
"""

from collections.abc import Callable

FASTER = 0.9
"""A batch changes what is expected of the next ones if it takes less than this fraction of it."""


class BatchSeconds:
    """The expected time of a batch by its rows, 1 to `most`; never less for more rows.

    below: by rows; a batch that takes fewer seconds is worth a call of `learn`.
    """

    def __init__(self, seconds_for: Callable[[int], float], most: int) -> None:
        self._seconds = [0.0, *map(seconds_for, range(1, most + 1))]
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
