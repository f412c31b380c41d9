from dataclasses import replace

import pytest
import torch

from training.families.augment import Deformation, deform

NONE = Deformation(
    rotation_degrees=0.0, scale=0.0, shear=0.0, translation=0.0, elastic_alpha=0.0, elastic_sigma=4.0
)
ALL = Deformation(
    rotation_degrees=15.0, scale=0.15, shear=0.15, translation=2.0, elastic_alpha=36.0, elastic_sigma=5.0
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(count: int = 1) -> torch.Tensor:
    """A bright square of 12 pixels per side in the middle."""
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, 8:20, 8:20] = 1
    return images


def centre(images: torch.Tensor) -> torch.Tensor:
    """The centres of mass, (n, 2): row and column."""
    place = torch.arange(28.0)
    mass = images.sum(dim=(1, 2, 3))
    return torch.stack([images.sum(dim=(1, 3)) @ place / mass, images.sum(dim=(1, 2)) @ place / mass], dim=1)


def test_no_deformation_changes_nothing() -> None:
    images = torch.rand(3, 1, 28, 28)
    # grid_sample computes each position in float32: a millionth of a pixel.
    torch.testing.assert_close(deform(images, NONE, generator()), images, atol=1e-5, rtol=0)


def test_generator_decides_the_deformation() -> None:
    first, second, other = (deform(square(4), ALL, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_every_image_is_deformed_differently() -> None:
    deformed = deform(square(4), ALL, generator())
    assert len({image.numpy().tobytes() for image in deformed}) == 4


def test_images_stay_in_range_and_shape() -> None:
    deformed = deform(torch.rand(64, 1, 28, 28), ALL, generator())
    assert deformed.shape == (64, 1, 28, 28)
    assert float(deformed.min()) >= 0
    assert float(deformed.max()) <= 1 + 1e-6


def test_translation_is_in_pixels_and_bounded() -> None:
    moved = centre(deform(square(500), replace(NONE, translation=3.0), generator())) - 13.5
    assert 2.5 < float(moved.abs().max()) <= 3.0 + 1e-3


def test_rotation_keeps_the_centre_and_the_area() -> None:
    turned = deform(square(100), replace(NONE, rotation_degrees=45.0), generator())
    torch.testing.assert_close(centre(turned), torch.full((100, 2), 13.5), atol=1e-2, rtol=0)
    # Bilinear resampling moves the edges by a part of a pixel: a few of 144.
    assert float((turned.sum(dim=(1, 2, 3)) - 144).abs().max()) < 4


def test_scale_is_a_fraction_of_each_side() -> None:
    areas = deform(square(500), replace(NONE, scale=0.2), generator()).sum(dim=(1, 2, 3))
    assert 144 / 1.2**2 - 4 < float(areas.min()) < 115
    assert 190 < float(areas.max()) < 144 / 0.8**2 + 4


def test_shear_keeps_the_area() -> None:
    areas = deform(square(100), replace(NONE, shear=0.3), generator()).sum(dim=(1, 2, 3))
    assert float((areas - 144).abs().max()) < 4


def test_elastic_field_is_smooth_and_of_the_published_size() -> None:
    """A ramp image reads the displacement back: its value is its column."""
    ramp = torch.arange(28.0).repeat(200, 1, 28, 1)
    moved = deform(ramp, replace(NONE, elastic_alpha=34.0, elastic_sigma=4.0), generator())
    displacement = (moved - ramp)[:, 0, 8:20, 8:20]
    # Uniform noise has deviation 0.577; a Gaussian of sigma 4 divides it by 2 * 4 * sqrt(pi).
    assert float(displacement.std()) == pytest.approx(34 * 0.577 / (8 * 3.1416**0.5), rel=0.1)
    assert float(displacement.diff(dim=2).abs().max()) < 1.5


def test_device_and_dtype_are_kept() -> None:
    deformed = deform(square(2), ALL, generator())
    assert (deformed.dtype, deformed.device.type) == (torch.float32, "cpu")
