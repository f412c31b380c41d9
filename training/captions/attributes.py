"""The style of a digit, measured from its image alone: stroke width, slant and size.

A style's level is relative to other images of the same digit: the lowest 30 % of the training images of a
seven are the thin sevens, the highest 30 % the thick ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.models import manifest
from training.datasets.splits import CLASSES, SIDE, Dataset

STYLES = tuple(manifest.STYLES)
"""The names of the measures, stroke, slant and size: the columns of `measure`."""

LOW, ANY, HIGH = 0, 1, 2
"""Levels: of an image the lowest, the middle and the highest images; of a caption, ANY says nothing."""

FRACTION = 0.3
"""The fraction of the training images of a digit whose level is LOW, and of those whose level is HIGH."""


def measure(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Measure the style of images (n, 28, 28), ink 255: (n, 3), one column for each of STYLES.

    stroke: the width of the strokes, twice the ink's area over its outline, which a stroke has on both sides.
        The outline is the total variation, the mean outline over all grey levels (coarea formula).
    slant: the angle by which a shear would have to be undone so that the ink's second moments are upright
        (the deskewing of LeCun et al. 1998), in degrees; positive leans to the right.
    size: the area of the bounding box, with soft edges: the sum of the brightest pixels of each row, times
        that of each column.
    An image without ink gets zeros.
    """
    ink = images.astype(np.float32) / 255
    area = ink.sum((1, 2))
    safe = np.maximum(area, 1e-6)
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    across = np.diff(padded, axis=2)[:, :-1]
    down = np.diff(padded, axis=1)[:, :, :-1]
    outline = np.maximum(np.sqrt(across**2 + down**2).sum((1, 2)), 1e-6)
    place = np.arange(SIDE, dtype=np.float32)
    rows, columns = ink.sum(2), ink.sum(1)
    y, x = rows @ place / safe, columns @ place / safe
    vertical = (rows * (place - y[:, None]) ** 2).sum(1)
    mixed = np.einsum("nyx,ny,nx->n", ink, place - y[:, None], place - x[:, None])
    size = ink.max(1).sum(1) * ink.max(2).sum(1)
    slant = np.degrees(np.arctan2(-mixed, np.maximum(vertical, 1e-6)))
    return np.stack([2 * area / outline, np.where(area > 0, slant, 0), size], 1).astype(np.float32)


@dataclass(frozen=True)
class Thresholds:
    """For each digit and style, up to which value an image is LOW and from which on it is HIGH.

    low, high: (10, 3) float32.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, train: Dataset) -> "Thresholds":
        """The quantiles of the training images of each digit; a digit without images has no LOW or HIGH."""
        measures = measure(train.images)
        low = np.full((CLASSES, len(STYLES)), -np.inf, np.float32)
        high = np.full((CLASSES, len(STYLES)), np.inf, np.float32)
        for digit in np.unique(train.labels):
            own = measures[train.labels == digit]
            low[digit], high[digit] = np.quantile(own, [FRACTION, 1 - FRACTION], axis=0)
        return cls(low, high)

    def levels(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The levels of images (n, 28, 28) of digits (n,): (n, 3), LOW, ANY or HIGH."""
        measures = measure(images)
        highs = (measures > self.high[labels]).astype(np.int64)
        return 1 + highs - (measures < self.low[labels]).astype(np.int64)

    def described(self) -> str:
        """The thresholds of the digits 0 to 9, for people."""
        units = dict(zip(STYLES, ("px", "degrees", "px2"), strict=True))
        parts = []
        for column, style in enumerate(STYLES):
            pairs = zip(self.low[:, column], self.high[:, column], strict=True)
            listed = ", ".join(f"{low:.3g} and {high:.3g}" for low, high in pairs)
            parts.append(f"{style} ({units[style]}) {listed}")
        return "; ".join(parts)
