"""Euler steps along a velocity field. Knows nothing of the network that gives it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def step_times(steps: int, warp: float) -> list[float]:
    """Return where the Euler steps begin, and then 1.

    The last one begins at 1 - 1/steps, whatever the warp is: it only adds what the network expects of an
    image that is nearly done. The others lie at powers of evenly spread ones, so that with a warp above 1 the
    steps grow.
    """
    last = steps - 1
    return [last / steps * (step / max(1, last)) ** warp for step in range(steps)] + [1.0]


def integrate(velocity: nn.Module, z: Tensor, labels: Tensor, times: Sequence[float]) -> Tensor:
    """Follow the field from z (n, 1, 28, 28) in Euler steps between these times; of the shape of z.

    times: from 0 to 1, ascending.
    """
    x = z
    for time, following in pairwise(times):
        t = torch.full_like(labels, time, dtype=torch.float32)
        x = x + (following - time) * velocity(x, t, labels)
    return x
