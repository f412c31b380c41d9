"""Where a picture becomes a digit: normalised to 28x28 like MNIST's. Knows nothing of files, models or HTTP.

MNIST's digits were scaled to fit a 20x20 box with their proportions kept, anti-aliased, and centred in 28x28
by their centre of mass (LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition",
section III.A). A classifier trained on them needs drawings and photos normalised in the same way.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.content.lines import without_lines
from service.content.sheet import read_sheet, widened
from service.content.strokes import chosen_strokes, labels_of, runs_of
from service.errors import InvalidInput

Gray = NDArray[np.uint8]
Ink = NDArray[np.float32]

SIDE = 28
BOX = 20
CENTRE = 14
"""The centre of mass of MNIST's digits, in pixel indices; measured over all its images: 14.0 +- 0.5."""

WORKING_SIDE = 400
"""Larger pictures are averaged down to this side first, which bounds the time; a digit that fills a tenth
of the picture still has enough pixels."""

MIN_CONTRAST = 25.0
"""The least difference between ink and background, in grey levels; noise and shadows of an empty sheet
differ by less."""


def digit_from_picture(picture: Image.Image) -> Gray:
    """Return the digit in a picture of any size and mode: (28, 28) uint8, light ink on a black background.

    A 28x28 picture counts as normalised already: it is inverted if its background is light, and otherwise
    left as it is, bit for bit. On any other picture the ink is found first: see `sheet` and `strokes`.
    Raises InvalidInput for a picture without ink, with more than one sign, or with a sign that the border cuts.
    """
    gray = _gray(picture)
    lowest, highest = int(gray.min()), int(gray.max())
    if lowest == highest:
        raise InvalidInput(f"image is blank: every pixel has grey level {lowest}, expected a digit")
    if gray.shape == (SIDE, SIDE):
        return ~gray if np.median(_border(gray)) > _threshold(gray) else gray
    return _centred(_fitted(_ink(gray)))


def _gray(picture: Image.Image) -> Gray:
    """Return a picture's grey levels, at most WORKING_SIDE in each direction."""
    factor = -(-max(picture.size) // WORKING_SIDE)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("L").reduce(factor))
    rgba = picture.convert("RGBA").reduce(factor)
    return _without_transparency(np.asarray(rgba.convert("L")), np.asarray(rgba.getchannel("A")))


def _without_transparency(luma: Gray, alpha: Gray) -> Gray:
    """Return the grey levels of a picture with transparent parts.

    If the background is transparent, the opacity shows the strokes, whatever their colour. On a sheet with
    transparent parts, such as round corners, these are filled with the sheet's own background.
    """
    seen = luma[alpha > 0]
    if alpha.min() == 255:
        return luma
    if 2 * seen.size < luma.size or np.ptp(seen) < 2 * MIN_CONTRAST:
        return alpha
    background = np.median(seen)
    return np.rint(background + (luma - background) * (alpha / np.float32(255))).astype(np.uint8)


def _border(gray: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])


def _threshold(gray: Gray) -> int:
    """Return the grey level that best divides a picture into dark, up to it, and light (Otsu 1979)."""
    counts = np.bincount(gray.ravel(), minlength=256)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    divided = (below > 0) & (above > 0)
    means = sums[-1] * (below / below[-1]) - sums
    spread = np.divide(means**2, below * above, out=np.zeros(256), where=divided)
    return int(spread.argmax())


def _ink(gray: Gray) -> Ink:
    """Return the digit's ink, 0 around it. Raises InvalidInput if no single whole sign stands out."""
    sheet = read_sheet(gray)
    floor = max(6 * sheet.noise, 4.0)
    level = float(np.percentile(sheet.smoothed[::2, ::2], 99.8))
    dark = sheet.smoothed > max(0.4 * level, floor)
    contrast = float(np.median(sheet.contrast[dark])) if dark.any() else 0.0
    if contrast < MIN_CONTRAST:
        return _block(gray, contrast)
    faint = sheet.smoothed > max(0.08 * level, floor)
    marks = without_lines(faint, dark)
    sign = chosen_strokes(marks, sheet.smoothed)
    reach = max(2, round(max(np.ptp(axis) for axis in np.nonzero(sign)) / BOX))
    ink = np.where(widened(sign, reach) & faint & (sign | ~dark), sheet.ink, np.float32(0))
    strongest = float(np.median(ink[sign]))
    strongest = float(np.median(ink[ink > 0.6 * strongest]))
    ink[ink < 0.1 * strongest] = 0
    return np.minimum(ink, strongest)


def _block(gray: Gray, contrast: float) -> Ink:
    """Return the ink of the only block on a picture without strokes."""
    if np.median(_border(gray)) > _threshold(gray):
        gray = ~gray
    mask = gray > _threshold(gray)
    runs = runs_of(mask)
    labels = labels_of(runs)
    spans = mask[[0, -1]].all(axis=1).any() or mask[:, [0, -1]].all(axis=0).any()
    if labels.max() > 0 or spans or np.ptp(gray) < MIN_CONTRAST or (mask.sum() < 0.9 * mask.any(0).sum() * mask.any(1).sum()):
        raise InvalidInput(
            f"image has no ink: its strokes differ from the paper around them by {contrast:.0f} grey levels, "
            f"expected a digit that differs from its background by at least {MIN_CONTRAST:.0f}"
        )
    return mask.astype(np.float32)


def _fitted(ink: Ink) -> Ink:
    """Return the ink scaled to 20 pixels in its longer direction, with its strongest pixel at 255."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = BOX / max(bottom - top, right - left)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    crop = Image.fromarray(np.ascontiguousarray(ink[top:bottom, left:right]))
    fitted = np.asarray(crop.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR))
    strongest: Ink = fitted * (255 / fitted.max())
    return strongest


def _centred(digit: Ink) -> Gray:
    """Return the digit in 28x28, with its centre of mass in the middle."""
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (_offset(digit.sum(axis=axis)) for axis in (1, 0))
    canvas[top : top + digit.shape[0], left : left + digit.shape[1]] = np.rint(digit)
    return canvas


def _offset(mass: Ink) -> int:
    """Return the row or column to start the digit at, with its centre of mass on CENTRE if it fits."""
    centre = float(mass @ np.arange(len(mass)) / mass.sum())
    return min(max(round(CENTRE - centre), 0), SIDE - len(mass))
