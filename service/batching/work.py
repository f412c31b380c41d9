"""How much work batches are: their time, had their rows run in full batches.

An idle device starts at once, so from half of its capacity on it runs small batches nearly all the time. That
it is busy tells little of how much more it could do. What its rows would have taken in full batches does.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from service.batching.batch_seconds import BatchSeconds
from service.batching.queue import BatchRecord


@dataclass
class Worked:
    """Sums over the batches of all models.

    seconds: of work. spared_on_loop_seconds: the remaining time of the batches that ran on the event loop.
    """

    seconds: float = 0.0
    spared_on_loop_seconds: float = 0.0


class WorkMeter:
    """Adds the work of one model version's batches to the sums.

    seconds_for, sizes: see `BatchSeconds`, which corrects the times; what is still wrong after that makes the
        work too much, never more than the time.
    full: returns the rows of the batches that form under load, which can change.
    """

    def __init__(
        self,
        seconds_for: Callable[[int], float],
        sizes: Sequence[int],
        full: Callable[[], int],
        worked: Worked,
    ) -> None:
        self._expected = BatchSeconds(seconds_for, sizes)
        self._full = full
        self._worked = worked

    def count(self, batches: Iterable[BatchRecord]) -> None:
        """Add batches that have run."""
        seconds: dict[int, float] = {}
        on_loop: dict[int, float] = {}
        for batch in batches:
            rows, took = batch.rows, batch.compute_seconds
            seconds[rows] = seconds.get(rows, 0.0) + took
            if batch.on_loop:
                on_loop[rows] = on_loop.get(rows, 0.0) + took
            if not batch.failed:
                self._expected.learn(rows, took)
        full = self._full()
        for rows, took in seconds.items():
            share = _share(self._expected.of(rows), rows * self._expected.of(full) / full)
            self._worked.seconds += took * share
            self._worked.spared_on_loop_seconds += on_loop.get(rows, 0.0) * (1 - share)


def _share(fastest: float, in_full_batches: float) -> float:
    """Return the fraction of a batch's time that is work, above 0 and at most 1."""
    if not 0 < fastest < math.inf or not 0 < in_full_batches < math.inf:
        return 1.0
    return min(1.0, in_full_batches / fastest)
