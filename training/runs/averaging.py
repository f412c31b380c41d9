"""The exponential moving average of a network's weights, which is what is validated and exported."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def averaged(model: torch.nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights and buffers follow it as an exponential moving average.

    Call `update_parameters(model)` after each step; use `.module`. The decay starts at 0.1 and rises
    to `decay` as (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, so that the random
    first weights are soon forgotten. Integer buffers are copied, because their averages would be
    truncated: 5 * 0.9 + 5 * 0.1 to 4. On a GPU an update does not wait for the device.
    """

    def average(averages: Any, weights: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            for mean, now in zip(averages, weights, strict=True):
                mean.copy_(now)
            return
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(now)(averages, weights, count)  # type: ignore[no-untyped-call]

    device = next(model.parameters()).device
    if device.type == "cuda":
        return AveragedOnDevice(model, decay)
    return AveragedModel(model, device=device, multi_avg_fn=average, use_buffers=True)


class AveragedOnDevice(AveragedModel):
    """The same average, with its decay computed on the device.

    AveragedModel reads the number of updates on the host, twice per update: the host would wait for the
    device at each step, and a CUDA graph could not hold an update.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        super().__init__(model, device=next(model.parameters()).device, use_buffers=True)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        """Move the averages towards the model's weights and buffers; the first update copies them."""
        count = self.n_averaged
        kept = ((1 + count) / (10 + count)).clamp(max=self._decay) * (count > 0)
        averages, weights = _floats(self.module), _floats(model)
        torch._foreach_mul_(averages, kept)
        torch._foreach_add_(averages, torch._foreach_mul(weights, 1 - kept))
        for mean, now in zip(_tensors(self.module), _tensors(model), strict=True):
            if not mean.is_floating_point():
                mean.copy_(now)
        self.n_averaged += 1


def _tensors(model: torch.nn.Module) -> list[Tensor]:
    return [each.detach() for each in itertools.chain(model.parameters(), model.buffers())]


def _floats(model: torch.nn.Module) -> list[Tensor]:
    return [each for each in _tensors(model) if each.is_floating_point()]
