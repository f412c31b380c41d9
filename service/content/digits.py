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
from service.content.pictures import in_bands
from service.content.sheet import Gray, Ink, Mask, read_sheet, widened
from service.content.strokes import check_whole, chosen_strokes
from service.errors import InvalidInput

SIDE = 28
BOX = 20
CENTRE = 14
"""The centre of mass of MNIST's digits, in pixel indices; measured over all its images: 14.0 +- 0.5."""

WORKING_SIDE = 400
"""Larger pictures are averaged down to this side first, which bounds the time; a digit that fills a tenth
of the picture still has enough pixels."""

STRONGEST = 99.8
"""The percentile of a sheet's ink that counts as full: a small digit covers a few pixels in a thousand."""

AS_DARK = 0.15
"""What differs from the ink by at most this fraction of its contrast is as dark as the ink. The darkest
shadow is lighter (`sheet.DIMMEST`), and most bars at a side are darker or lighter."""

MIN_CONTRAST = 25.0
"""The least difference between ink and paper, in grey levels; noise of an empty sheet differs by less."""


def digit_from_picture(picture: Image.Image) -> Gray:
    """Return the digit in a picture of any size and mode: (28, 28) uint8, light ink on a black background.

    A 28x28 picture counts as normalised already: it is inverted if its background is light, and otherwise
    left as it is, bit for bit. On any other picture the ink is found first: see `sheet` and `strokes`.
    Raises InvalidInput if there is no ink, more than one sign, or a sign that the border cuts.
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
        return np.asarray(in_bands(picture, "L", lambda band: band.convert("L").reduce(factor), factor))
    rgba = in_bands(picture, "RGBA", lambda band: band.convert("RGBA").reduce(factor), factor)
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
    level = float(np.percentile(sheet.smoothed[::2, ::2], STRONGEST))
    floor = min(max(6 * sheet.noise, 4.0), 0.35 * level)
    dark = sheet.smoothed > max(0.4 * level, floor)
    contrast = float(np.median(sheet.contrast[dark])) if dark.any() else 0.0
    if contrast < MIN_CONTRAST:
        return _block(gray, contrast)
    faint = sheet.smoothed > max(0.08 * level, floor)
    sign = chosen_strokes(without_lines(faint, dark), sheet.smoothed)
    as_dark = np.abs(sheet.gray - np.median(sheet.gray[sign])) <= AS_DARK * contrast
    solid = sign | (as_dark & ~faint)
    if _border(solid).any():
        check_whole(sign, solid)
    ink = np.where(_edged(sign) & faint & (sign | ~dark), sheet.ink, np.float32(0))
    level = float(np.median(ink[sign]))
    level = float(np.median(ink[ink > 0.6 * level]))  # without the strokes' soft edges
    return np.where(ink < 0.1 * level, np.float32(0), np.minimum(ink, level))


def _edged(sign: Mask) -> Mask:
    """Return the sign with its soft edges: as wide as a pixel of MNIST's box."""
    size = max(int(np.ptp(axis)) for axis in np.nonzero(sign))
    return widened(sign, max(2, round(size / BOX)))


def _block(gray: Gray, contrast: float) -> Ink:
    """Return the one rectangle on a picture that is too solid for strokes.

    contrast: that of the strokes, for the error.
    Raises InvalidInput for anything else, such as an empty sheet on a desk.
    """
    threshold = _threshold(gray)
    mask = gray <= threshold if np.median(_border(gray)) > threshold else gray > threshold
    whole_side = any(side.all() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    box = np.count_nonzero(mask.any(axis=0)) * np.count_nonzero(mask.any(axis=1))
    if np.ptp(gray) < MIN_CONTRAST or whole_side or np.count_nonzero(mask) < 0.95 * box:
        raise InvalidInput(
            f"image has no ink: its strokes differ from the paper around them by {contrast:.0f} grey levels, "
            f"expected a digit that differs by at least {MIN_CONTRAST:.0f}"
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
