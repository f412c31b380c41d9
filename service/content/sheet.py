"""The paper of a picture: how bright it is under the ink, and how much light the ink takes away.

A stroke is narrow and paper is wide, in any light; a shadow, a desk around the sheet and black bars are wide
too. So a morphological closing (Serra 1982), which fills everything narrow, gives the paper's level, and no
edge between two wide parts is mistaken for ink. Knows nothing of digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Gray = NDArray[np.uint8]
Ink = NDArray[np.float32]
Mask = NDArray[np.bool_]

NARROW = 0.25
"""What is narrower than this fraction of the longer side can be a stroke: twice the fattest marker's."""

NOISY = 2
"""A picture whose neighbouring pixels usually differ by this many grey levels is smoothed over 3x3 pixels
before strokes are looked for, because noise is narrow too."""

DIMMEST = 0.35
"""Paper in a shadow has at least this fraction of the brightest paper's light; darker parts are no paper, and
their noise is no ink."""


@dataclass(frozen=True)
class Sheet:
    """What was written on a sheet.

    gray: the picture without most of the camera's noise, with the ink darker than the paper.
    ink: the fraction of the paper's light that each pixel lacks, 0..255; 0 where no stroke can be.
    smoothed: the same without most of the camera's noise, for finding strokes.
    contrast: the same as `smoothed` in grey levels of the picture.
    noise: the standard deviation of `smoothed` on plain paper.
    """

    gray: Gray
    ink: Ink
    smoothed: Ink
    contrast: Gray
    noise: float


def read_sheet(gray: Gray) -> Sheet:
    """Return the ink of a picture, dark on light or light on dark."""
    smooth = _smoothed(gray)
    window = max(3, round(NARROW * max(gray.shape)))
    closed, opened = filled(smooth, window), ~filled(~smooth, window)
    if _is_dark(smooth, closed, opened):
        gray, smooth, closed = ~gray, ~smooth, ~opened
    dimmest = max(1, int(DIMMEST * closed[::2, ::2].max()))
    light = np.float32(255) / np.maximum(closed, dimmest)
    contrast = closed - smooth
    smoothed = contrast * light
    sample = smoothed[::2, ::2]
    low, usual = np.percentile(sample, (25, 50))  # lines and ink make no pixel lighter
    noise = float(usual - low) / 0.6745
    ink = (closed - np.minimum(gray, closed)) * light
    return Sheet(smooth, np.maximum(ink - usual, 0), np.maximum(smoothed - usual, 0), contrast, noise)


def _smoothed(gray: Gray) -> Gray:
    sample = gray[::2].astype(np.int16)
    if not sample[:, 1:].size or np.median(np.abs(np.diff(sample, axis=1))) < NOISY:
        return gray
    return np.asarray(Image.fromarray(gray).filter(ImageFilter.BoxBlur(1)))


def filled(gray: Gray, window: int) -> Gray:
    """Return the picture with everything dark filled that no square of `window` pixels fits into.

    Beyond the border the picture goes on as it ends: a dark strip along a side is wide.
    """
    padded = np.pad(gray, window - 1, mode="edge")
    return eroded(grown(padded, window), window)


def grown(values: NDArray[Any], window: int) -> NDArray[Any]:
    """Return the maximum of each square of `window` pixels; smaller by `window` - 1 in each direction."""
    return _running(_running(values, window, np.maximum).T, window, np.maximum).T


def eroded(values: NDArray[Any], window: int) -> NDArray[Any]:
    """Return the minimum of each square of `window` pixels; smaller by `window` - 1 in each direction."""
    return _running(_running(values, window, np.minimum).T, window, np.minimum).T


def widened(mask: Mask, radius: int) -> Mask:
    """Return the mask grown by `radius` pixels in each direction."""
    return grown(np.pad(mask, radius), 2 * radius + 1)


def _running(values: NDArray[Any], window: int, pick: Callable[[Any, Any], NDArray[Any]]) -> NDArray[Any]:
    """Return the extreme of each `window` rows that follow one another, in log2(window) steps."""
    values = np.ascontiguousarray(values)
    width = 1
    while 2 * width <= window:
        values = pick(values[:-width], values[width:])
        width *= 2
    rest = window - width
    return pick(values[:-rest], values[rest:]) if rest else values


def _is_dark(gray: Gray, closed: Gray, opened: Gray) -> bool:
    """Whether the paper is darker than the ink.

    Ink ends at edges. Paper that is narrow, because a desk or the ink is near, also ends where it gets wide.
    """
    depth = closed - opened
    deep = max(1, int(0.4 * depth.max()))
    narrow = depth > deep
    light, dark = gray - opened > deep, closed - gray > deep
    middle = opened + depth // 2
    if 2 * np.count_nonzero(narrow) > narrow.size:
        lighter = float(np.mean(gray[narrow] > middle[narrow]))
        # Lines everywhere: paper is what there is more of, and wider than the lines.
        return _width(light) < _width(dark) if 0.4 < lighter < 0.6 else lighter < 0.5
    light_cut, dark_cut = _cut(~gray, light, ~opened, deep), _cut(gray, dark, closed, deep)
    if abs(light_cut - dark_cut) > 0.05:
        return light_cut < dark_cut
    if _is_sheet(light, dark) or _is_sheet(dark, light):
        return bool(np.count_nonzero(dark) > np.count_nonzero(light))
    return _darker_around(gray, narrow, middle) > 0.5


def _is_sheet(mask: Mask, ink: Mask) -> bool:
    """Whether a mask is a whole small sheet with ink on it, not a stroke with holes."""
    return bool(4 * np.count_nonzero(mask) > mask.size and ink.any() and _width(mask) > 3 * _width(ink))


def _width(mask: Mask) -> float:
    """Return the mean width of the parts of a mask: its area divided by half of its outline."""
    outline = int(np.count_nonzero(mask[1:] ^ mask[:-1]) + np.count_nonzero(mask[:, 1:] ^ mask[:, :-1]))
    return 2 * int(np.count_nonzero(mask)) / max(1, outline)


def _cut(gray: Gray, dark: Mask, closed: Gray, deep: int) -> float:
    """Return the fraction of the outline of the narrow dark parts where the picture is as dark outside."""
    return _darker_around(gray, dark, closed - np.minimum(closed, deep))


def _darker_around(gray: Gray, mask: Mask, level: Gray) -> float:
    """Return the fraction of the pixels around a mask that are darker than the level next to them."""
    ring = widened(mask, 4) & ~widened(mask, 1)
    near = grown(np.pad(np.where(mask, level, 0).astype(np.uint8), 4), 9)
    return float(np.mean(gray[ring] < near[ring])) if ring.any() else 0.0
