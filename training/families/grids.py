"""Grids of images as PNG files: ten columns, a row for each digit."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.datasets.splits import CLASSES, SIDE
from training.files import write_atomically

COLUMNS = 10


def grid_labels() -> NDArray[np.int64]:
    """The labels of a grid's images, row by row: ten of each digit."""
    return np.repeat(np.arange(CLASSES), COLUMNS)


def save_grid(images: NDArray[np.uint8], path: Path) -> None:
    """Write images, (rows * 10, 28, 28), as a PNG of ten columns, from left to right, then down."""
    rows = images.reshape(-1, COLUMNS, SIDE, SIDE).swapaxes(1, 2).reshape(-1, COLUMNS * SIDE)
    buffer = BytesIO()
    Image.fromarray(rows).save(buffer, format="png", optimize=True)
    write_atomically(path, buffer.getvalue())
