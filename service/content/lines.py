"""Printed lines on a sheet: ruled paper, squared paper, margins. Finds them by their length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.content.sheet import Mask
from service.content.strokes import Ints, runs_of

STEEPEST = 0.3
"""The steepest line, as rise over run: 17 degrees."""

SLOPES = np.linspace(-STEEPEST, STEEPEST, 61)
"""Two neighbours part by two pixels over half of a picture of 400."""

THICKEST = 0.025
"""The thickest line, as a fraction of the picture's longer side."""

COVERED = 0.45
"""The least fraction of a line's way across the picture that is visible; strokes cover the rest."""

SHORTEST = 0.25
"""The least fraction of the picture's width that a line crosses; a shorter one could be a stroke."""


def without_lines(faint: Mask, dark: Mask) -> Mask:
    """Return the dark mask without the lines that cross the picture in either direction.

    faint: a mask with a lower threshold, in which weak lines have no gaps.
    """
    return dark & ~(lines_in(faint) | lines_in(faint.T).T)


def lines_in(mask: Mask) -> Mask:
    """Return the pixels of the lines that cross the mask from left to right; strokes across them stay."""
    columns = runs_of(mask.T)
    thin = np.flatnonzero(columns.length <= max(2, round(THICKEST * max(mask.shape))))
    pieces = _Pieces(
        columns.row[thin] - mask.shape[1] / 2,
        (columns.start[thin] + columns.stop[thin] - 1) / 2,
        columns.length[thin],
    )
    lines = np.zeros(len(columns.row), np.bool_)
    lines[thin] = pieces.on_lines(*mask.shape)
    return columns.mask(lines).T


@dataclass(frozen=True)
class _Pieces:
    """Thin vertical runs of a mask: of a line, of a stroke's edge or of noise.

    x: the column, from the picture's middle; y: the middle row; thickness: the number of pixels.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    thickness: Ints

    def on_lines(self, height: int, width: int) -> Mask:
        """Whether each piece belongs to a line; all lines have the slope with the sharpest profile."""
        if len(self.x) < COVERED * SHORTEST * width:
            return np.zeros(len(self.x), np.bool_)
        above = int(STEEPEST * width) + 4  # rows above the picture where a line can meet its middle column
        rows = height + 2 * above
        slope = self._sharpest(SLOPES, above, rows)
        slope = self._sharpest(slope + np.linspace(-0.01, 0.01, 11), above, rows)
        place = self.y - slope * self.x + above
        found = _lines(np.bincount(place.astype(np.intp), minlength=rows), slope, above, height, width)
        on = np.zeros(len(place), np.bool_)
        for start in found:
            on |= (place >= start - 0.5) & (place < start + 4.5)
        if on.any():
            on &= self.thickness <= 1.5 * np.median(self.thickness[on]) + 1.5
        return on

    def _sharpest(self, slopes: NDArray[np.float64], above: int, rows: int) -> float:
        """Return the slope along which the pieces fall on the fewest rows."""
        sharpness = []
        for slope in slopes:
            place = (self.y - slope * self.x + above).astype(np.intp)
            counts = np.bincount(place, minlength=rows).astype(np.float64)
            sharpness.append(np.square(counts[:-1] + counts[1:]).sum())
        return float(slopes[int(np.argmax(sharpness))])


def _lines(counts: Ints, slope: float, above: int, height: int, width: int) -> Ints:
    """Return the first of the four rows of each line. counts: the pieces at each row, shifted by `above`."""
    near = counts[:-3] + counts[1:-2] + counts[2:-1] + counts[3:]
    middle = np.arange(len(near))[:, None] + 1.5 - above
    columns = np.linspace(-width / 2, width / 2, 101)
    inside = (middle + slope * columns >= 0) & (middle + slope * columns < height)
    crossed = inside.mean(axis=1) * width
    found = np.flatnonzero((near >= COVERED * crossed) & (crossed >= SHORTEST * width))
    return np.array([row for row in found if near[row] == near[max(0, row - 4) : row + 5].max()], np.intp)
