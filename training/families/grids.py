"""Generated images: their latents, grids of them, and what a classifier's features tell of them.

Knows nothing of any generator, nor of torch: images are (n, 28, 28) uint8, features come from the
caller. The classifier is trained on the same data, so these numbers compare models with each other
and with real images; they are not those of papers, which use Inception features.
"""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.splits import CLASSES, SIDE, write_atomically

COLUMNS = 10


def uniforms(seed: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers of (0, 1], from Philox's raw words: numpy promises to keep these the same for ever.

    It does not promise so for the distributions that it makes of them, nor does torch for its own;
    a manifest's metrics must be the same years later.
    """
    words = np.random.Philox(key=seed).random_raw(math.prod(shape))
    uniform: NDArray[np.float64] = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    return uniform.reshape(shape)


def normals(seed: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Numbers of N(0, 1), from `uniforms` (Box and Muller 1958)."""
    rows, columns = shape
    radius, angle = uniforms(seed, (2, rows, columns))
    normal: NDArray[np.float64] = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)
    return normal.astype(np.float32)


def grid_labels() -> NDArray[np.int64]:
    """The labels of a grid's images, row by row: a row of ten of each digit."""
    return np.repeat(np.arange(CLASSES), COLUMNS)


def save_grid(images: NDArray[np.uint8], path: Path) -> None:
    """Write images, (rows * 10, 28, 28), as a PNG of ten columns, from left to right, then down."""
    rows = images.reshape(-1, COLUMNS, SIDE, SIDE).swapaxes(1, 2).reshape(-1, COLUMNS * SIDE)
    buffer = BytesIO()
    Image.fromarray(rows).save(buffer, format="png", optimize=True)
    write_atomically(path, buffer.getvalue())


def frechet_distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The distance between the Gaussians of two sets of features, (n, d) and (m, d) (Heusel et al. 2017).

    |mean difference|^2 + trace(C1 + C2 - 2 (C1 C2)^1/2). The eigenvalues of C1 C2 are those of the
    symmetric S C2 S with S = C1^1/2, which needs no square root of an asymmetric matrix.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    difference = first.mean(0) - second.mean(0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross)


def precision_recall(
    real: NDArray[np.float32], generated: NDArray[np.float32], neighbours: int = 3
) -> tuple[float, float]:
    """Fidelity and diversity, both 0..1 (Kynkaanniemi et al. 2019), from features (n, d) and (m, d).

    Precision is the share of generated images inside the real set, recall that of real images inside
    the generated one. A set is the union of balls around its members, each as large as the distance
    to its `neighbours`-th nearest other member; 3 is the paper's choice.
    """
    distances = _squared_distances(generated, real)  # (m, n)
    precision = (distances <= _radii(real, neighbours)[None, :]).any(1).mean()
    recall = (distances <= _radii(generated, neighbours)[:, None]).any(0).mean()
    return float(precision), float(recall)


def _radii(features: NDArray[np.float32], neighbours: int) -> NDArray[np.float32]:
    """The squared distance of each to its n-th nearest other; the nearest of all is itself."""
    radii: NDArray[np.float32] = np.partition(_squared_distances(features, features), neighbours, axis=1)
    return radii[:, neighbours]


def _squared_distances(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """All pairs, (n, m); the features are centred first, for precision."""
    centre = second.mean(0)
    first, second = first - centre, second - centre
    norms = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :]
    distances: NDArray[np.float32] = norms - 2 * first @ second.T
    return distances.clip(0)
