"""Whether two classifiers differ by more than chance, on the same images."""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class McNemar:
    """The result of McNemar's test. only_first, only_second: images that only that classifier gets right."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Return McNemar's exact, two-sided test of two classifiers (McNemar 1947).

    first, second: (n,), whether each classifier got each image right. If both were equally good, a fair coin
    would split the images that only one of them gets right: p is the chance of a split as uneven as this.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    count = only_first + only_second
    tail = sum(comb(count, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**count))
