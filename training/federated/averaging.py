"""The server's average of the clients' weights, and its private form. Knows neither torch nor Flower.

Weights are lists of arrays in the order of the network's parameters.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Weights = Sequence[NDArray[np.float32]]


def clipped(update: Weights, bound: float) -> list[NDArray[np.float32]]:
    """The update, scaled down so that the norm of all its numbers together is at most `bound`."""
    norm = float(np.sqrt(sum(float(np.square(each, dtype=np.float64).sum()) for each in update)))
    factor = np.float32(min(1.0, bound / max(norm, 1e-12)))
    return [each * factor for each in update]


def private_average(
    before: Weights,
    after: Sequence[Weights],
    *,
    bound: float,
    noise_multiplier: float,
    expected: float,
    rng: np.random.Generator,
) -> list[NDArray[np.float32]]:
    """The weights after a round with privacy for each client (McMahan et al. 2018, fixed denominator).

    The sum of the clients' clipped updates, with Gaussian noise of `noise_multiplier` times `bound`, is
    divided by the number of clients that is expected to take part, because their real number depends on who
    they are. Every client has the same weight, whatever the number of its images. after: may be empty; a
    round in which no client takes part adds the noise all the same.
    """
    result = []
    updates = [clipped([new - old for new, old in zip(each, before, strict=True)], bound) for each in after]
    for i, old in enumerate(before):
        noise = rng.normal(0, noise_multiplier * bound, old.shape)
        total = sum((update[i].astype(np.float64) for update in updates), start=noise)
        result.append((old + total / expected).astype(np.float32))
    return result
