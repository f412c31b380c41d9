"""First-order wavelet scattering (Mallat 2012): fixed features of an image, which training does not touch.

A linear layer on them has few parameters, so that little noise is added: Tramer and Boneh 2021 found such
models better than convolutional networks at small epsilons. The wavelets and their constants are those of
Kymatio's Scattering2D with J = 2 and L = 8. The second order, 64 more channels, is left out: it would cost
five times the parameters and the time.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALES = 2
ORIENTATIONS = 8
CHANNELS = 1 + SCALES * ORIENTATIONS
SIDE = 7
FEATURES = CHANNELS * SIDE * SIDE


class Scattering(nn.Module):
    """Images (n, 1, 28, 28) float in 0..1 to features (n, 833), each channel standardised by itself.

    A channel is the image, or the modulus of its convolution with a wavelet, averaged to 7x7.
    """

    def __init__(self) -> None:
        super().__init__()
        for scale in range(SCALES):
            self.register_buffer(f"wavelets_{scale}", _wavelets(scale))
        self.register_buffer("window_0", _window(1.6, 9))
        self.register_buffer("window_1", _window(0.8, 5))

    def forward(self, images: Tensor) -> Tensor:
        """Features, (n, 833)."""
        maps = [_averaged(images, self.get_buffer("window_0"), 4)]
        for scale in range(SCALES):
            wavelets = self.get_buffer(f"wavelets_{scale}")
            stride = 2**scale
            waves = functional.conv2d(images, wavelets, stride=stride, padding=wavelets.shape[-1] // 2)
            real, imaginary = waves.chunk(2, dim=1)
            modulus = (real.square() + imaginary.square()).sqrt()
            maps.append(_averaged(modulus, self.get_buffer(f"window_{scale}"), 4 // stride))
        channels = torch.cat(maps, dim=1)  # (n, 17, 7, 7)
        # By image and channel, so that no image's features depend on another's.
        return functional.group_norm(channels, CHANNELS).flatten(1)


def _averaged(maps: Tensor, window: Tensor, stride: int) -> Tensor:
    """Each map convolved with the window, (n, channels, 7, 7)."""
    channels = maps.shape[1]
    windows = window.expand(channels, 1, -1, -1)
    return functional.conv2d(maps, windows, stride=stride, padding=window.shape[-1] // 2, groups=channels)


def _wavelets(scale: int) -> Tensor:
    """Morlet wavelets of one scale: (16, 1, size, size), the real parts before the imaginary ones."""
    deviation, frequency, slant = 0.8 * 2**scale, 0.75 * math.pi / 2**scale, 4 / ORIENTATIONS
    radius = math.ceil(2.5 * deviation / slant)
    y, x = _grid(radius)
    parts = []
    for i in range(ORIENTATIONS):
        angle = i * math.pi / ORIENTATIONS
        along = x * math.cos(angle) + y * math.sin(angle)
        across = y * math.cos(angle) - x * math.sin(angle)
        envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * deviation**2))
        envelope /= envelope.sum()
        wave = torch.polar(torch.ones_like(along), frequency * along)
        parts.append(envelope * (wave - (envelope * wave).sum()))  # the mean of a wavelet is 0
    waves = torch.stack(parts).unsqueeze(1)
    return torch.cat([waves.real, waves.imag]).float()


def _window(deviation: float, size: int) -> Tensor:
    y, x = _grid(size // 2)
    window = torch.exp(-(x**2 + y**2) / (2 * deviation**2))
    return (window / window.sum()).float().view(1, 1, size, size)


def _grid(radius: int) -> tuple[Tensor, Tensor]:
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return y, x
