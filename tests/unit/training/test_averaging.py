import pytest
import torch
from torch import nn

from training.runs.averaging import averaged


def test_averaged_weights_soon_forget_the_first_ones() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(100.0)
        ema = averaged(model, 0.999)
        ema.update_parameters(model)
        model.weight.fill_(1.0)
    for _ in range(100):
        ema.update_parameters(model)
    assert ema(torch.ones(1)).item() == pytest.approx(1.0, abs=1e-3)


def test_averaging_copies_integer_buffers() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("labels", torch.arange(10))
    ema = averaged(model, 0.999)
    for _ in range(200):
        ema.update_parameters(model)
    assert torch.equal(ema.module.get_buffer("labels"), torch.arange(10))
