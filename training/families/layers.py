"""What the families build and train with alike: a convolution, the widths of layers, a one-cycle schedule."""

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """A convolution without a bias, batch normalisation and ReLU."""
    return [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def hidden_layers(network: nn.Module, head: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Each convolution and linear layer but the head, in order."""
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    return [layer for layer in layers if layer is not head]


def widths(network: nn.Module, head: nn.Module) -> list[int]:
    """The number of channels or units of each hidden layer."""
    return [len(layer.weight) for layer in hidden_layers(network, head)]


def one_cycle(optimizer: Optimizer, rates: float | list[float], steps: int, warm_up: float) -> OneCycleLR:
    """The schedule that rises for the fraction `warm_up` of the steps, then falls along half a cosine to 0.

    rates: the highest learning rate, of all parameter groups or of each (Smith and Topin 2018).
    """
    if warm_up * steps == 1:  # OneCycleLR would divide by zero; 1e-9 less changes no rate
        warm_up *= 1 - 1e-9
    return OneCycleLR(optimizer, rates, total_steps=steps, pct_start=warm_up, cycle_momentum=False)
