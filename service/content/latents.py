"""Latents drawn from a seed: row i depends only on the seed and on i, never on how many rows are drawn.

The service draws its samples here, and training draws the samples that it measures, so a manifest's metrics
hold for the images that the service generates. Imports only numpy.
"""

import math
import secrets

import numpy as np
from numpy.random import Philox  # by name, or numpy would load it at the first request, in 4 ms or more
from numpy.typing import NDArray

MAX_SEED = 2**64 - 1
_WORDS_PER_BLOCK = 4


def random_seed() -> int:
    """Return a random seed, small enough for a JSON number to hold exactly."""
    return secrets.randbelow(2**53)


def draw_latents(seed: int, rows: int, size: int) -> NDArray[np.float32]:
    """Draw z ~ N(0, 1), (rows, size).

    seed: 0..MAX_SEED.
    Philox4x64-10 (Salmon et al. 2011), keyed by the seed, gives each row a block of words of its own;
    the method of Box and Muller (1958) turns uniform numbers into normal ones, with a fixed number of words
    per value.
    """
    pairs = math.ceil(size / 2)
    blocks = math.ceil(2 * pairs / _WORDS_PER_BLOCK)
    uniform = draw_uniforms(seed, rows * blocks * _WORDS_PER_BLOCK).reshape(rows, -1)
    radius = np.sqrt(-2.0 * np.log(uniform[:, :pairs]))
    angle = 2.0 * np.pi * uniform[:, pairs : 2 * pairs]
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normals[:, :size].astype(np.float32)


def draw_uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """Draw uniform numbers in (0, 1], (count,), from Philox's raw words.

    numpy promises never to change the raw words, but promises nothing for its own distributions;
    callers keep seeds, and metrics must be the same years later.
    """
    words = Philox(key=seed).random_raw(count)
    uniform: NDArray[np.float64] = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    return uniform
