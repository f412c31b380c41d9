"""Spearman's rank correlation, with mean ranks for ties."""

import numpy as np
from numpy.typing import NDArray


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The correlation of two samples' ranks, in -1..1; 0 if all values of a sample are equal."""
    ranks = [_ranks(sample.ravel()) for sample in (first, second)]
    a, b = (each - each.mean() for each in ranks)
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length else 0.0


def _ranks(sample: NDArray[np.floating]) -> NDArray[np.float64]:
    _, places, counts = np.unique(sample, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return ranks
