"""Exponential buckets: those of Prometheus' native histograms, beside the fixed bounds of the classic ones.

Bucket i has the values in (2 ** ((i - 1) / 8), 2 ** (i / 8)], which is schema 3 of Prometheus'
specification of native histograms.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SCHEMA = 3
"""2 ** SCHEMA buckets per power of two: each is 9 % wide."""

_FIRST, _LAST = -20 * 2**SCHEMA, 14 * 2**SCHEMA
ZERO_THRESHOLD = 2.0**-20
"""Values up to this, a microsecond, are in the bucket of zeros."""

Native = dict[int, int]
"""The count of each bucket that is not empty, by its index; the bucket of zeros has the index ZEROS."""

ZEROS = _FIRST
"""Everything up to the bound of the first bucket."""


class Grid(NamedTuple):
    """The classic and the exponential bounds in one row, so that one search finds both buckets of a value.

    bounds: ascending. classic, exponential: where the bounds of each kind are among them.
    """

    bounds: NDArray[np.float64]
    classic: NDArray[np.intp]
    exponential: NDArray[np.intp]


@cache
def grid_of(classic: tuple[float, ...]) -> Grid:
    """Return the grid for a histogram with these classic bounds."""
    exponential = 2.0 ** (np.arange(_FIRST, _LAST + 1) / 2**SCHEMA)
    bounds = np.union1d(classic, exponential)
    return Grid(bounds, np.searchsorted(bounds, classic), np.searchsorted(bounds, exponential))


def classic_counts(grid: Grid, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the count of each classic bucket, not cumulative; counts: of each bucket of the grid."""
    return np.diff(counts.cumsum()[grid.classic], prepend=0, append=counts.sum())


def native_counts(grid: Grid, counts: NDArray[np.int64]) -> Native:
    """Return the count of each exponential bucket; counts: as above."""
    each = np.diff(counts.cumsum()[grid.exponential], prepend=0, append=counts.sum())
    return {int(index) + _FIRST: int(each[index]) for index in np.flatnonzero(each)}


def added(one: Mapping[int, int], other: Mapping[int, int]) -> Native:
    """Return the sum of two histograms."""
    return {index: one.get(index, 0) + other.get(index, 0) for index in {*one, *other}}


class Spans(NamedTuple):
    """Buckets as the exposition lists them.

    spans: the gap to the span before, in buckets, and the number of buckets in a row. deltas: each bucket's
    count less the count of the one before.
    """

    spans: Sequence[tuple[int, int]]
    deltas: Sequence[int]


def spans_of(native: Mapping[int, int]) -> Spans:
    """Return the buckets without that of the zeros."""
    spans: list[tuple[int, int]] = []
    deltas: list[int] = []
    last, before = 0, 0
    for index in sorted(native.keys() - {ZEROS}):
        if spans and index == last + 1:
            spans[-1] = spans[-1][0], spans[-1][1] + 1
        else:
            spans.append((index - last - 1 if spans else index, 1))
        deltas.append(native[index] - before)
        last, before = index, native[index]
    return Spans(spans, deltas)
