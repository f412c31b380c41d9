"""Latents drawn from a seed: row i depends only on the seed and on i, never on how many rows are drawn.

The service draws its samples here, and training draws the samples that it measures, so a manifest's metrics
hold for the images that the service generates. Imports only numpy.
"""

import math
import secrets

import numpy as np
from numpy.random import Philox  # by name, or numpy would load it at the first request, in 4 ms or more
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

MAX_SEED = 2**64 - 1
_WORDS_PER_BLOCK = 4

_WORDS_AT_A_TIME = 6400
"""Rows are drawn in groups of about this many words, whose arrays stay in a core's cache."""


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
    words = math.ceil(2 * pairs / _WORDS_PER_BLOCK) * _WORDS_PER_BLOCK
    group = max(1, _WORDS_AT_A_TIME // words)
    philox = _keyed(seed)
    z = np.empty((rows, size), np.float32)
    radius, angle, normal = np.empty((3, min(rows, group), pairs))
    for first in range(0, rows, group):
        part = z[first : first + group]
        drawn = philox.random_raw(len(part) * words).reshape(len(part), words)
        _box_muller(drawn, part, radius[: len(part)], angle[: len(part)], normal[: len(part)])
    return z


def draw_uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """Draw uniform numbers in (0, 1], (count,), from Philox's raw words.

    numpy promises never to change the raw words, but promises nothing for its own distributions;
    callers keep seeds, and metrics must be the same years later.
    """
    uniform = np.empty(count)
    _uniforms(_keyed(seed).random_raw(count), uniform)
    return uniform


class _Key(ISeedSequence):
    """Philox's key: the seed itself.

    `Philox(key=seed)` has the same state, but first gathers entropy that it does not use: 10 us instead of 4.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.array([seed, 0], np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        """Return the key, (2,): all that Philox asks for."""
        assert (n_words, dtype) == (2, np.uint64)
        return self._words


def _keyed(seed: int) -> Philox:
    return Philox(_Key(seed))  # type: ignore[arg-type]  # numpy's annotation omits the interface


def _uniforms(words: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    """Turn words into uniform numbers in (0, 1]; overwrites the words."""
    np.right_shift(words, 11, out=words)
    np.copyto(out, words.view(np.int64))  # 53 bits: exact; numpy converts signed integers twice as fast
    out += 1.0
    out *= 2.0**-53


def _box_muller(
    words: NDArray[np.uint64],
    z: NDArray[np.float32],
    radius: NDArray[np.float64],
    angle: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> None:
    """Turn words, (rows, 2 * pairs or more), into z, (rows, size).

    Overwrites the words, and radius, angle and normal, (rows, pairs) each.
    """
    pairs, size = radius.shape[1], z.shape[1]
    _uniforms(words[:, :pairs], radius)
    _uniforms(words[:, pairs : 2 * pairs], angle)
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * np.pi
    np.cos(angle, out=normal)
    normal *= radius
    z[:, :pairs] = normal
    np.sin(angle, out=normal)
    normal *= radius
    z[:, pairs:] = normal[:, : size - pairs]
