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
        return np.bincount(np.repeat(labels, self.length), values[self.pixels])


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
    """The components of a mask: (n,) arrays. mass: the sum of the ink; box: its rows and columns, stop excluded."""

    mass: NDArray[np.float64]
    top: Ints
    bottom: Ints
    left: Ints
    right: Ints

    @property
    def height(self) -> Ints:
        return self.bottom - self.top

    @property
    def width(self) -> Ints:
        return self.right - self.left

    @property
    def size(self) -> Ints:
        return np.maximum(self.height, self.width)


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


NEAR = 0.22
"""Strokes of one sign are at most this far apart, in units of its size."""

DIRT = 0.015
"""A mark with a smaller fraction of the sign's mass is dirt, or where two printed lines cross."""

SECOND = 0.1
"""A mark with this fraction of the sign's mass or more is a second sign, not dirt."""

WIDEST = 1.8
"""MNIST's widest digit in a thousand is 1.67 times as wide as high."""


def chosen_strokes(mask: Mask, ink: NDArray[np.float32]) -> Mask:
    """Return the strokes that make the one sign on the sheet.

    Raises InvalidInput if the border cuts the sign, or there is more than one.
    """
    height, width = mask.shape
    runs = runs_of(mask)
    if not len(runs.row):
        raise InvalidInput("image has no ink: only printed lines were seen, expected a digit")
    labels = labels_of(runs)
    marks = marks_of(runs, labels, ink)
    cut = (marks.top == 0) | (marks.left == 0) | (marks.bottom == height) | (marks.right == width)
    main = int(np.where(cut, 0, marks.mass).argmax())
    if marks.mass[cut].max(initial=0) > 0.5 * marks.mass[main] or cut[main]:
        raise InvalidInput(
            "image shows ink that touches its border, expected a whole digit with some paper around it"
        )
    size = int(marks.size[main])
    sign = np.zeros(len(marks.mass), np.bool_)
    sign[main] = True
    for _ in range(2):
        near = widened(runs.mask(sign[labels]), max(2, round(NEAR * size)))
        sign |= (runs.sums(labels, near) > 0) & ~cut & (marks.mass >= DIRT * marks.mass[main])
    others = (marks.mass >= SECOND * marks.mass[main]) & ~sign
    beside = sign & (marks.height > 0.6 * marks.height[main])
    apart = (np.minimum(marks.right, marks.right[main]) - np.maximum(marks.left, marks.left[main])) < 0
    beside[main] = False
    if others.any() or (beside & apart).any():
        raise InvalidInput("image shows more than one sign, expected a single digit")
    chosen = runs.mask(sign[labels])
    wide, high = (np.ptp(np.flatnonzero(chosen.any(axis))) + 1 for axis in (0, 1))
    if wide > WIDEST * high:
        raise InvalidInput(
            f"image shows a sign of {wide} x {high} pixels, expected a digit, which is higher than wide"
        )
    return chosen

