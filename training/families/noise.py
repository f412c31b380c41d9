"""Noise for training: on images, and alone, as images that show nothing. Knows nothing of models or runs."""

import torch
from torch import Tensor

GRAINS = (1, 2, 4)
"""The sizes of the squares of equal brightness that noise images consist of, in pixels."""

FAINTEST = 0.25
"""In the faintest noise images no pixel is brighter than this."""


def noisy(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to each image, of a standard deviation that is uniform in 0..most, within 0..1.

    images: (n, 1, side, side) float in 0..1 on the generator's device; the result has the same shape.
    """
    deviation = torch.rand((len(images), 1, 1, 1), generator=generator, device=images.device) * most
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + deviation * noise).clamp(0, 1)


def noise_images(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return images of noise alone, (count, 1, side, side) float in 0..1, on the generator's device.

    Each pixel, or each square of GRAINS pixels, is uniform between 0 and a brightness that is uniform in
    FAINTEST..1 for each image.
    """
    device = generator.device
    noise = torch.rand((count, 1, side, side), generator=generator, device=device)
    place = torch.arange(side, device=device)
    for number, grain in enumerate(GRAINS):
        same = place // grain
        some = noise[number :: len(GRAINS)]
        noise[number :: len(GRAINS)] = some[:, :, same][:, :, :, same]
    brightest = torch.rand((count, 1, 1, 1), generator=generator, device=device)
    return noise * (FAINTEST + (1 - FAINTEST) * brightest)
