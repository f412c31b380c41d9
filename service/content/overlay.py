"""A map of attributions as a picture: its colours, laid over the image that it explains."""

import numpy as np
from numpy.typing import NDArray

from service.content.attributions import Map
from service.models.manifest import ImageLayout
from service.models.tensors import Array

SCALE = 8
"""Pixels of the picture for one of the image, each way, up to LARGEST."""

LARGEST = 512
"""The longer side of a picture, unless the image's own is longer."""

FOR, AGAINST = (178, 24, 43), (33, 102, 172)
"""Red and blue, near the ends of ColorBrewer's RdBu: readers who confuse red and green tell them apart."""

INK, BARE = 0.62, 0.75
"""How much darker full ink is than the background, and the part of this that the strongest pixel is spared:
integrated gradients lie on ink alone, whose darkness would hide their colour."""


def overlay(image: Array, layout: ImageLayout, attributions: Map) -> NDArray[np.uint8]:
    """Return the image as dark ink, in red where it speaks for the target and in blue where against it.

    image: a row of an image tensor, uint8, bright ink on black. The strongest pixel has the full colour.
    Returns (height, width, 3) uint8, scaled up.
    """
    strength = np.abs(attributions).max()
    share = attributions / strength if strength > 0 else attributions
    ends = np.where(share[..., None] > 0, np.array(FOR), np.array(AGAINST))
    colours = 255 + np.abs(share)[..., None] * (ends - 255)
    dark = INK * _ink(image, layout) * (1 - BARE * np.abs(share))
    shaded = colours * (1 - dark[..., None])
    scale = max(1, min(SCALE, LARGEST // max(layout.height, layout.width)))
    picture: NDArray[np.uint8] = np.rint(shaded).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    return picture


def _ink(image: Array, layout: ImageLayout) -> NDArray[np.float64]:
    """Return the image's brightness in 0..1, (height, width)."""
    if image.ndim == 3:
        image = image.mean(0 if layout.channels_first else -1)
    return image / 255
