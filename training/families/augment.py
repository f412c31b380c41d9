"""Random affine and elastic deformation of a batch of images, on its device, in one resampling.

Each image is sampled once, from a grid that holds the sum of both deformations, so nothing is blurred
twice. Knows nothing of models or runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Deformation:
    """How far images may be deformed; every value is the end of a uniform range around no deformation.

    rotation_degrees, scale (a fraction, for each axis), shear (a slope), translation (pixels): affine.
    elastic_alpha: the strength of the elastic field, in pixels before smoothing.
    elastic_sigma: the standard deviation of the Gaussian that smooths the field, in pixels.
    """

    rotation_degrees: float
    scale: float
    shear: float
    translation: float
    elastic_alpha: float
    elastic_sigma: float


def deform(images: Tensor, deformation: Deformation, generator: torch.Generator) -> Tensor:
    """Deform each image differently; pixels from outside the image are 0.

    images: (n, 1, side, side) float on the generator's device; the result has the same shape.
    """
    grid = _affine_grid(images, deformation, generator)
    if deformation.elastic_alpha > 0:
        grid = grid + _elastic_field(images, deformation, generator)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _affine_grid(images: Tensor, deformation: Deformation, generator: torch.Generator) -> Tensor:
    """(n, side, side, 2): where each pixel of the result is read from, in grid_sample's -1..1."""
    count, side = images.shape[0], images.shape[-1]
    uniform = torch.rand((6, count), generator=generator, device=images.device) * 2 - 1
    angle = torch.deg2rad(uniform[0] * deformation.rotation_degrees)
    wide, high = 1 + uniform[1] * deformation.scale, 1 + uniform[2] * deformation.scale
    shear = uniform[3] * deformation.shear
    across, down = uniform[4:] * (deformation.translation * 2 / side)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * wide, (shear * cos - sin) * high, across], dim=1),
        torch.stack([sin * wide, (shear * sin + cos) * high, down], dim=1),
    ]
    return functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)


def _elastic_field(images: Tensor, deformation: Deformation, generator: torch.Generator) -> Tensor:
    """(n, side, side, 2): a smooth random displacement of every pixel, in grid_sample's units.

    Uniform noise in -1..1, convolved with a Gaussian of standard deviation sigma and multiplied by
    alpha (Simard, Steinkraus and Platt 2003). The Gaussian is separable, so the convolution is two
    products with one (side, side) matrix.
    """
    count, side = images.shape[0], images.shape[-1]
    noise = torch.rand((count, 2, side, side), generator=generator, device=images.device) * 2 - 1
    place = torch.arange(side, device=images.device, dtype=torch.float32)
    blur = torch.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * deformation.elastic_sigma**2))
    blur = blur / blur[side // 2].sum()
    field = blur @ noise @ blur.T * (deformation.elastic_alpha * 2 / side)
    return field.permute(0, 2, 3, 1)
