"""Random numbers for metrics."""

import math

import numpy as np
from numpy.typing import NDArray


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
