"""Steps along a velocity field. Knows nothing of the network that gives it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Solver = Literal["euler", "adams-bashforth"]
"""How a step follows from the velocities: Euler's takes that at its beginning, and the two-step method of
Adams and Bashforth draws a line through this and the one before (Hairer, Norsett and Wanner 1993, III.1, with
III.5 for steps of different widths). Both ask the network once for each step."""


def step_times(steps: int, warp: float) -> list[float]:
    """Return where the steps begin, and then 1.

    The last one begins at 1 - 1/steps, whatever the warp is: it only adds what the network expects of an
    image that is nearly done. The others lie at powers of evenly spread ones, so that with a warp above 1 the
    steps grow.
    """
    last = steps - 1
    return [last / steps * (step / max(1, last)) ** warp for step in range(steps)] + [1.0]


def integrate(
    velocity: nn.Module, z: Tensor, labels: Tensor, times: Sequence[float], solver: Solver = "euler"
) -> Tensor:
    """Follow the field from z (n, 1, 28, 28) in steps between these times; of the shape of z.

    times: ascending, from 0.
    """
    *_, arrived = path(velocity, z, labels, times, solver)
    return arrived


def path(
    velocity: nn.Module, z: Tensor, labels: Tensor, times: Sequence[float], solver: Solver
) -> Iterator[Tensor]:
    """Yield what the field makes of z at each of these times; arguments are those of `integrate`.

    The step to 1 is always Euler's: it ends at what the network expects of an image that is nearly done,
    and the line through the velocities before would lead past that.
    """
    x, before, width_before = z, None, 1.0
    yield x
    for time, following in pairwise(times):
        t = torch.full_like(labels, time, dtype=torch.float32)
        seen = change = velocity(x, t, labels)
        width = following - time
        if solver == "adams-bashforth" and before is not None and following < 1:
            change = seen + width / (2 * width_before) * (seen - before)
        x = x + width * change
        before, width_before = seen, width
        yield x


def merged_steps_loss(
    velocity: nn.Module,
    teacher: nn.Module,
    z: Tensor,
    labels: Tensor,
    times: Sequence[float],
    finer: Sequence[float],
    solver: Solver = "euler",
) -> tuple[Tensor, Tensor]:
    """How far a field is from reaching in one step where a teacher arrives in several, and what it reaches.

    The teacher follows its own steps. Between two of the times the field's velocity should be that of the
    straight way (Salimans and Ho 2022, progressive distillation). Returns the squared error per pixel,
    integrated over the time of the way, and the images (n, 1, 28, 28) at which the field's last step arrives.
    No gradient goes through the teacher.

    z: (n, 1, 28, 28) float32. labels: (n,) int64. times, finer: where the steps of the field and of the
    teacher begin, and then 1; the latter hold the former. solver: the teacher's.
    """
    with torch.no_grad():
        arrivals = zip(finer, path(teacher, z, labels, finer, solver), strict=True)
        states = [x for time, x in arrivals if time in times]
    widths = [following - time for time, following in pairwise(times)]
    t = torch.cat([torch.full_like(labels, time, dtype=torch.float32) for time in times[:-1]])
    velocities = velocity(torch.cat(states[:-1]), t, labels.repeat(len(widths))).chunk(len(widths))
    errors = [
        width * functional.mse_loss(seen, (arrived - start) / width)
        for width, seen, (start, arrived) in zip(widths, velocities, pairwise(states), strict=True)
    ]
    return torch.stack(errors).sum(), states[-2] + widths[-1] * velocities[-1]
