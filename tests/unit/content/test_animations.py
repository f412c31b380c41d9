"""Animations of images."""

import io

import numpy as np
import pytest
from PIL import Image

from service.content.animations import APNG, WEBP, animation


@pytest.mark.parametrize(("kind", "form"), [(WEBP, "WEBP"), (APNG, "PNG")])
@pytest.mark.parametrize("shape", [(4, 28, 28), (4, 28, 28, 3), (2, 28, 28)])
def test_the_frames_go_forth_and_back_without_loss(kind: str, form: str, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = Image.open(io.BytesIO(animation(images, kind)))
    order = [*range(len(images)), *range(len(images) - 2, 0, -1)]
    assert (file.format, getattr(file, "n_frames", 1), file.info["loop"]) == (form, len(order), 0)
    for frame, index in enumerate(order):
        file.seek(frame)
        shown = np.asarray(file.convert("RGB"))
        assert np.array_equal(shown if len(shape) == 4 else shown[..., 0], images[index])
