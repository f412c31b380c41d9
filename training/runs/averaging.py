"""The exponential moving average of a network's weights, which is what is validated and exported."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(model: torch.nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights and buffers follow it as an exponential moving average.

    Call `update_parameters(model)` after each step; use `.module`. The decay starts at 0.1 and rises
    to `decay` as (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, so that the random
    first weights are soon forgotten. Integer buffers are copied, because their averages would be
    truncated: 5 * 0.9 + 5 * 0.1 to 4.
    """

    def average(averages: Any, weights: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            for mean, now in zip(averages, weights, strict=True):
                mean.copy_(now)
            return
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(now)(averages, weights, count)  # type: ignore[no-untyped-call]

    device = next(model.parameters()).device
    return AveragedModel(model, device=device, multi_avg_fn=average, use_buffers=True)
