"""The strokes of a sheet: which marks are printed lines, and which strokes make one sign.

Knows nothing of grey levels: a mark is a connected set of pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.content.sheet import Mask, widened
from service.errors import InvalidInput

Ints = NDArray[np.intp]

NEAR = 0.22
"""Strokes of one sign are at most this far apart, in units of its size."""

DIRT = 0.015
"""A mark with a smaller fraction of the sign's mass is dirt, or where two printed lines cross."""

TALL = 0.6
"""A mark beside the sign with this fraction of its height or more is a second sign, however near it is."""

SECOND = 0.1
"""A mark with this fraction of the sign's mass or more is a second sign, not dirt."""

CUT_OFF = "image shows ink that touches its border, expected a whole digit with some paper around it"

WIDEST = 1.8
"""MNIST's widest digit in a thousand is 1.67 times as wide as high."""


@dataclass(frozen=True)
class Runs:
    """A mask's runs along its rows: the pixels [start, stop) of a row, in the order of reading."""

    pixels: Mask
    row: Ints
    start: Ints
    stop: Ints

    @property
    def length(self) -> Ints:
        """The number of pixels of each run."""
        return self.stop - self.start

    def mask(self, chosen: Mask) -> Mask:
        """Return a mask of the chosen runs only."""
        mask = np.zeros(self.pixels.shape, np.bool_)
        mask[self.pixels] = np.repeat(chosen, self.length)
        return mask

    def sums(self, labels: Ints, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum of the values, (height, width), under the runs of each label."""
        weights = values[self.pixels].astype(np.float64)
        return np.bincount(np.repeat(labels, self.length), weights).astype(np.float64, copy=False)


def runs_of(mask: Mask) -> Runs:
    """Return the runs of a mask, (height, width)."""
    padded = np.pad(mask, ((0, 0), (1, 1)))
    changes = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    row, start = np.divmod(changes[::2], mask.shape[1] + 1)
    return Runs(mask, row, start, changes[1::2] - row * (mask.shape[1] + 1))


def labels_of(runs: Runs) -> Ints:
    """Return the component of each run, 0, 1, ...: runs that touch, diagonally too, share one."""
    width = runs.pixels.shape[1] + 2
    first, last = runs.row * width + runs.start, runs.row * width + runs.stop
    low = np.searchsorted(last, first + width, "left")
    high = np.searchsorted(first, last + width, "right")
    count = np.maximum(high - low, 0)
    above = np.repeat(np.arange(len(first)), count)
    below = np.arange(len(above)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    roots = np.arange(len(first))
    while True:
        one, other = roots[above], roots[below]
        apart = one != other
        if not apart.any():
            return np.unique(roots, return_inverse=True)[1]
        one, other = one[apart], other[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while (roots != roots[roots]).any():
            roots = roots[roots]


@dataclass(frozen=True)
class Marks:
    """The components of a mask, arrays of (n,): the sum of the ink, and the box, with its stops excluded."""

    mass: NDArray[np.float64]
    top: Ints
    bottom: Ints
    left: Ints
    right: Ints

    @property
    def height(self) -> Ints:
        """The number of rows."""
        return self.bottom - self.top

    def touch_border(self, shape: tuple[int, ...]) -> Mask:
        """Whether each mark has a pixel at the border of the picture."""
        touching: Mask = (self.top == 0) | (self.left == 0)
        touching |= (self.bottom == shape[0]) | (self.right == shape[1])
        return touching

    @property
    def size(self) -> Ints:
        """The number of rows or columns, whichever is larger."""
        size: Ints = np.maximum(self.height, self.right - self.left)
        return size


def marks_of(runs: Runs, labels: Ints, ink: NDArray[np.float32]) -> Marks:
    """Measure each component."""
    count = int(labels.max()) + 1
    top, left = np.full(count, ink.shape[0]), np.full(count, ink.shape[1])
    bottom, right = np.zeros(count, np.intp), np.zeros(count, np.intp)
    np.minimum.at(top, labels, runs.row)
    np.maximum.at(bottom, labels, runs.row + 1)
    np.minimum.at(left, labels, runs.start)
    np.maximum.at(right, labels, runs.stop)
    return Marks(runs.sums(labels, ink), top, bottom, left, right)


def chosen_strokes(mask: Mask, ink: NDArray[np.float32]) -> Mask:
    """Return the strokes that make the one sign on the sheet.

    Raises InvalidInput if the border cuts the sign, or there is more than one.
    """
    runs = runs_of(mask)
    if not len(runs.row):
        raise InvalidInput("image has no ink: only printed lines were seen, expected a digit")
    labels = labels_of(runs)
    marks = marks_of(runs, labels, ink)
    cut = marks.touch_border(mask.shape)
    main = int(np.where(cut, 0, marks.mass).argmax())
    if cut[main] or marks.mass[cut].max(initial=0) > 0.5 * marks.mass[main]:
        raise InvalidInput(CUT_OFF)
    sign = _joined(runs, labels, marks, main, ~cut)
    _check_single(marks, main, sign)
    chosen = runs.mask(sign[labels])
    _check_shape(chosen)
    return chosen


def check_whole(sign: Mask, solid: Mask) -> None:
    """Raise InvalidInput if the sign runs on to the border in what is as dark as its strokes.

    A stroke that the border cuts lengthways is not narrow, so it is no stroke in the mask of the ink.
    solid: the sign, and what is as dark as its strokes and too wide to be one.
    """
    runs = runs_of(solid)
    marks = marks_of(runs, labels_of(runs), sign.astype(np.float32))
    if (marks.touch_border(solid.shape) & (marks.mass > 0)).any():
        raise InvalidInput(CUT_OFF)


def _joined(runs: Runs, labels: Ints, marks: Marks, main: int, allowed: Mask) -> Mask:
    """Return which marks belong to the main one: those near it, and those near these."""
    allowed = allowed & (marks.mass >= DIRT * marks.mass[main])
    sign: Mask = np.arange(len(marks.mass)) == main
    if np.count_nonzero(allowed) > 1:
        for _ in range(2):
            near = widened(runs.mask(sign[labels]), max(2, round(NEAR * int(marks.size[main]))))
            sign |= (runs.sums(labels, near) > 0) & allowed
    return sign


def _check_single(marks: Marks, main: int, sign: Mask) -> None:
    """Raise InvalidInput if other marks are as heavy as a sign, or a near one is as high and stands apart."""
    others = ~sign & (marks.mass >= SECOND * marks.mass[main])
    overlap = np.minimum(marks.right, marks.right[main]) - np.maximum(marks.left, marks.left[main])
    high = sign & (marks.height > TALL * marks.height[main]) & (overlap < 0)
    if others.any() or high.any():
        count = 1 + np.count_nonzero(others | high)
        raise InvalidInput(f"image shows more than one sign ({count} were seen), expected a single digit")


def _check_shape(sign: Mask) -> None:
    wide, high = (int(np.ptp(np.flatnonzero(sign.any(axis)))) + 1 for axis in (0, 1))
    if wide > WIDEST * high:
        raise InvalidInput(
            f"image shows a sign {wide / high:.1f} times as wide as high, "
            f"expected a digit, at most {WIDEST} times as wide"
        )
