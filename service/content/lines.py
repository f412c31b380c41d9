"""Printed lines on a sheet: ruled paper, squared paper, margins. Finds them by their length and straightness."""

import numpy as np
from numpy.typing import NDArray

from service.content.sheet import Mask
from service.content.strokes import Runs, runs_of

SLOPES = np.linspace(-0.3, 0.3, 61)
"""Of lines to the picture's side: up to 17 degrees, in steps that part by two pixels over half a picture."""

THICKEST = 0.025
"""The thickest line, as a fraction of the picture's longer side."""

COVERED = 0.45
"""The least fraction of a line's way across the picture that is seen; strokes cover the rest."""


def without_lines(faint: Mask, dark: Mask) -> Mask:
    """Return the dark mask without the lines that cross the picture, in both directions.

    faint: a mask with a lower threshold, in which weak lines are whole.
    """
    lines = lines_in(faint) | lines_in(faint.T).T
    return dark & ~lines


def lines_in(mask: Mask) -> Mask:
    """Return the pixels of the lines that cross the mask from left to right; strokes across them stay."""
    columns = runs_of(mask.T)
    thin = columns.length <= max(2, round(THICKEST * max(mask.shape)))
    lines = np.zeros(len(thin), np.bool_)
    x, y = columns.row[thin], (columns.start[thin] + columns.stop[thin] - 1) / 2
    if len(x) >= COVERED * mask.shape[1] / 2:
        lines[np.flatnonzero(thin)] = _on_lines(x, y, columns.length[thin], mask.shape)
    return columns.mask(lines).T


def _on_lines(x: NDArray[np.intp], y: NDArray[np.float64], thickness: NDArray[np.intp], shape: tuple[int, int]) -> Mask:
    height, width = shape
    centre = x - width / 2
    reach = int(np.ceil(0.3 * width / 2)) + 2
    best, score = 0.0, -1.0
    for slope in SLOPES:
        counts = np.bincount((y - slope * centre + reach).astype(np.intp), minlength=height + 2 * reach)
        pairs = counts[:-1] + counts[1:]
        sharp = float((pairs.astype(np.float64) ** 2).sum())
        if sharp > score:
            best, score = float(slope), sharp
    on = np.zeros(len(x), np.bool_)
    fine = best + np.arange(-5, 6) * (SLOPES[1] - SLOPES[0]) / 5
    for _ in range(1):
        counts_of = [np.bincount((y - s * centre + reach).astype(np.intp), minlength=height + 2 * reach) for s in fine]
        sums = [float(((c[:-1] + c[1:]).astype(np.float64) ** 2).sum()) for c in counts_of]
        best = float(fine[int(np.argmax(sums))])
    place = y - best * centre + reach
    counts = np.bincount(place.astype(np.intp), minlength=height + 2 * reach + 4)
    near = counts[:-3] + counts[1:-2] + counts[2:-1] + counts[3:]
    # How many columns the line at each place crosses inside the picture.
    offset = np.arange(len(near)) + 1.5 - reach
    xs = np.arange(0, width, 4) - width / 2
    inside = (offset[:, None] + best * xs >= 0) & (offset[:, None] + best * xs < height)
    columns = inside.sum(1) * 4
    found = (near >= COVERED * columns) & (columns >= 0.25 * width)
    for start in np.flatnonzero(found):
        peak = near[max(0, start - 4) : start + 5].max()
        if near[start] == peak:
            on |= (place >= start - 0.5) & (place < start + 4.5)
    if on.any():
        limit = 1.5 * float(np.median(thickness[on])) + 1.5
        on &= thickness <= limit
    return on
