import pytest
import torch
from torch import nn

from training.runs.averaging import AveragedOnDevice, averaged


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


@pytest.mark.slow
def test_the_average_on_a_device_is_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    usual, on_device = averaged(model, 0.9), AveragedOnDevice(model, 0.9)
    for _ in range(100):  # the decay reaches 0.9 after 80
        with torch.no_grad():
            model.get_parameter("0.weight").add_(torch.randn(2, 3))
        model(torch.randn(5, 3))
        usual.update_parameters(model)
        on_device.update_parameters(model)
    assert usual.state_dict().keys() == on_device.state_dict().keys()
    # One adds a fraction of the difference, the other two products: float32 rounds them differently.
    torch.testing.assert_close(on_device.state_dict(), usual.state_dict(), rtol=1e-5, atol=1e-6)
