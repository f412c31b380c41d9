"""Euler steps along a velocity field. Knows nothing of the network that gives it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


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


def merged_steps_loss(
    velocity: nn.Module,
    teacher: nn.Module,
    z: Tensor,
    labels: Tensor,
    times: Sequence[float],
    finer: Sequence[float],
) -> Tensor:
    """How far a field is from reaching in one step where a teacher arrives in several.

    From each of the times the teacher follows its own steps to the next one; the field's velocity there
    should be that of the straight way (Salimans and Ho 2022, progressive distillation). Returns the squared
    error per pixel, integrated over the time of the way. No gradient goes through the teacher.

    z: (n, 1, 28, 28) float32. labels: (n,) int64. times, finer: where the steps of the field and of the
    teacher begin, and then 1; the latter hold the former.
    """
    ways: list[tuple[float, float, Tensor, Tensor]] = []
    x = z
    with torch.no_grad():
        for time, following in pairwise(times):
            arrived = integrate(teacher, x, labels, [each for each in finer if time <= each <= following])
            ways.append((time, following, x, arrived))
            x = arrived
    starts = torch.cat([start for _, _, start, _ in ways])
    t = torch.cat([torch.full_like(labels, time, dtype=torch.float32) for time, _, _, _ in ways])
    velocities = velocity(starts, t, labels.repeat(len(ways))).chunk(len(ways))
    errors = [
        (following - time) * functional.mse_loss(seen, (arrived - start) / (following - time))
        for seen, (time, following, start, arrived) in zip(velocities, ways, strict=True)
    ]
    return torch.stack(errors).sum()
