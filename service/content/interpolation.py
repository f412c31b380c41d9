"""Latents between two: along the sphere, or along the straight line. Imports only numpy."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["spherical", "linear"]
METHODS: tuple[Method, ...] = get_args(Method)
"""The default one first."""

PARALLEL = 1e-6
"""The sine of an angle below which the sphere's arc is the straight line, to the last digit of a float32."""


def between(
    first: NDArray[np.float32], last: NDArray[np.float32], steps: int, method: Method
) -> NDArray[np.float32]:
    """Return `steps` latents from `first` to `last`, both included: (steps, size). steps: at least 2.

    "spherical" is Shoemake's slerp (1985), which White (2016, "Sampling Generative "
    "Networks", arXiv 1609.04468)
    uses for latents: a normal latent of many dimensions lies near a sphere, and the middle of a straight line
    far inside it, where the generator has seen nothing. The angle is that between the two directions; lengths
    go from one to the other. "linear" is the straight line.
    """
    a, b = first.astype(np.float64), last.astype(np.float64)
    t = np.linspace(0, 1, steps)[:, None]
    weights = 1 - t, t
    if method == "spherical":
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        angle = np.arccos(np.clip(a @ b / lengths, -1, 1)) if lengths > 0 else 0.0
        if np.sin(angle) > PARALLEL:
            weights = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    points = weights[0] * a + weights[1] * b
    points[0], points[-1] = a, b  # exactly
    return points.astype(np.float32)
