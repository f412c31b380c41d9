"""A picture of what a published transformer attends to."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.datasets.splits import SIDE
from training.families.grids import COLUMNS, save_grid
from training.onnx_files import open_session, run_in_parts

ATTENTION_FILE = "attention.png"


def save_attention(graph: Path, images: NDArray[np.uint8], picture: Path) -> None:
    """Write rows of images, each above the rows of their maps, as a PNG.

    images: (n, 28, 28); a last row of fewer than ten is left out. Each map is scaled to its own maximum.
    """
    images = images[: len(images) // COLUMNS * COLUMNS]
    (maps,) = run_in_parts(open_session(graph), ["attention"], {"images": images})
    pairs = np.stack([images.reshape(-1, COLUMNS, SIDE, SIDE), _grey(maps)], axis=1)
    save_grid(pairs.reshape(-1, SIDE, SIDE), picture)


def _grey(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Maps (n, grid, grid) as rows of images, (n / 10, 10, 28, 28): each pixel becomes a square."""
    square = SIDE // maps.shape[1]
    levels: NDArray[np.uint8] = np.rint(255 * maps / maps.max(axis=(1, 2), keepdims=True)).astype(np.uint8)
    return levels.repeat(square, axis=1).repeat(square, axis=2).reshape(-1, COLUMNS, SIDE, SIDE)
