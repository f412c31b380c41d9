"""Fifteen corruptions of digits, by the names of MNIST-C (Mu and Gilmer 2019, arXiv 1906.02337).

The kinds are MNIST-C's; the code and the strengths are our own, so figures compare these models with each
other, not with papers. Every function takes images (n, 28, 28) float64 in 0..1 and a generator of random
numbers, and returns new images of the same shape. Knows nothing of models or files.
"""

import zlib
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.datasets.splits import SIDE

Images = NDArray[np.float64]

CENTRE = (SIDE - 1) / 2


def corrupted(images: NDArray[np.uint8], name: str, seed: int = 0) -> NDArray[np.uint8]:
    """Return images (n, 28, 28) with one corruption of `CORRUPTIONS`; the same bits for the same seed."""
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    levels: NDArray[np.uint8] = np.rint(CORRUPTIONS[name](images / 255, rng).clip(0, 1) * 255).astype(
        np.uint8
    )
    return levels


def _shot_noise(images: Images, rng: np.random.Generator) -> Images:
    """Poisson noise, as of 5 photons at full ink and of 0.25 on the paper."""
    return rng.poisson((0.05 + 0.95 * images) * 5) / 5


def _impulse_noise(images: Images, rng: np.random.Generator) -> Images:
    """A fifth of the pixels becomes black or white."""
    hit = rng.random(images.shape) < 0.2
    return np.where(hit, rng.integers(0, 2, images.shape), images)


def _glass_blur(images: Images, rng: np.random.Generator) -> Images:
    """Every pixel is taken from up to 2 pixels away, and the result is averaged over 3x3."""
    grid = _grid(len(images))
    moved = _sampled(images, *(axis + rng.integers(-2, 3, images.shape) for axis in grid))
    return _mean_of_shifts(moved, [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)])


def _motion_blur(images: Images, rng: np.random.Generator) -> Images:
    """The mean along 9 pixels of a line, at any angle."""
    angle = rng.uniform(0, np.pi, (len(images), 1, 1))
    rows, columns = _grid(len(images))
    steps = np.arange(-4, 5)
    down, across = np.sin(angle), np.cos(angle)
    return _mean(_sampled(images, rows + down * step, columns + across * step) for step in steps)


def _shear(images: Images, rng: np.random.Generator) -> Images:
    """A slope of 0.7 to either side."""
    slope = _sign(rng, len(images)) * 0.7
    rows, columns = _grid(len(images))
    return _sampled(images, rows, columns + slope * (rows - CENTRE))


def _scale(images: Images, _: np.random.Generator) -> Images:
    """Half the size."""
    rows, columns = _grid(len(images))
    return _sampled(images, CENTRE + (rows - CENTRE) * 2, CENTRE + (columns - CENTRE) * 2)


def _rotate(images: Images, rng: np.random.Generator) -> Images:
    """35 degrees to either side."""
    angle = _sign(rng, len(images)) * np.deg2rad(35)
    rows, columns = (axis - CENTRE for axis in _grid(len(images)))
    return _sampled(
        images,
        CENTRE + np.cos(angle) * rows - np.sin(angle) * columns,
        CENTRE + np.sin(angle) * rows + np.cos(angle) * columns,
    )


def _brightness(images: Images, _: np.random.Generator) -> Images:
    """The paper turns half grey, and the ink keeps its strength."""
    return 0.5 + 0.5 * images


def _translate(images: Images, rng: np.random.Generator) -> Images:
    """Four pixels along each axis: MNIST's digits keep as much room on every side."""
    rows, columns = _grid(len(images))
    return _sampled(images, rows + 4 * _sign(rng, len(images)), columns + 4 * _sign(rng, len(images)))


def _stripe(images: Images, _: np.random.Generator) -> Images:
    """The left and the right quarter are inverted."""
    quarter = SIDE // 4
    changed = images.copy()
    changed[:, :, :quarter] = 1 - changed[:, :, :quarter]
    changed[:, :, -quarter:] = 1 - changed[:, :, -quarter:]
    return changed


def _fog(images: Images, rng: np.random.Generator) -> Images:
    """Smooth clouds over the image, each octave half as strong as the coarser one before it."""
    clouds = _clouds(rng, len(images))
    return (images + 0.7 * clouds) / 1.7


def _spatter(images: Images, rng: np.random.Generator) -> Images:
    """Drops: white on the paper and black on the ink, where smooth noise is highest; a sixth of the image."""
    noise = _mean_of_shifts(
        rng.normal(size=images.shape), [(down, across) for down in range(-1, 2) for across in range(-1, 2)]
    )
    drops = noise > np.quantile(noise, 5 / 6, axis=(1, 2), keepdims=True)
    return np.where(drops, np.where(images > 0.5, 0.0, 0.8), images)


def _dotted_line(images: Images, rng: np.random.Generator) -> Images:
    """A straight line from border to border, every other pixel of it."""
    return np.maximum(images, [_line(_ends(rng), dotted=True) for _ in images])


def _zigzag(images: Images, rng: np.random.Generator) -> Images:
    """A line from border to border that turns ten times, by 2 pixels to either side."""
    changed = []
    for _ in images:
        start, end = (np.array(point, float) for point in _ends(rng))
        across = (end - start)[::-1] * (1, -1) / max(1e-9, float(np.linalg.norm(end - start)))
        points = [
            start + (end - start) * part / 11 + across * (0 if part in (0, 11) else 2 * (-1) ** part)
            for part in range(12)
        ]
        changed.append(_line([(float(x), float(y)) for x, y in points]))
    return np.maximum(images, changed)


def _canny_edges(images: Images, _: np.random.Generator) -> Images:
    """The outline alone: the gradient's ridges above 0.4 (Canny 1986, with one threshold)."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    down = (smooth[:, 2:] - smooth[:, :-2]) / 4
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = (smooth[:, :, 2:] - smooth[:, :, :-2]) / 4
    strength = np.hypot(down, across)
    rows, columns = _grid(len(images))
    unit = np.maximum(strength, 1e-9)
    ahead = _sampled(strength, rows + down / unit, columns + across / unit)
    behind = _sampled(strength, rows - down / unit, columns - across / unit)
    return ((strength > 0.4) & (strength >= ahead) & (strength > behind)).astype(np.float64)


CORRUPTIONS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "shear": _shear,
    "scale": _scale,
    "rotate": _rotate,
    "brightness": _brightness,
    "translate": _translate,
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted_line": _dotted_line,
    "zigzag": _zigzag,
    "canny_edges": _canny_edges,
}


def _grid(count: int) -> tuple[Images, Images]:
    """The row and the column of every pixel, (n, 28, 28) each."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    shape = (count, SIDE, SIDE)
    return np.broadcast_to(rows, shape), np.broadcast_to(columns, shape)


def _sampled(images: Images, rows: Images, columns: Images) -> Images:
    """Bilinear samples at these places, (n, 28, 28); outside of an image is paper, 0."""
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    rows, columns = (np.clip(axis + 1, 0, SIDE + 1) for axis in (rows, columns))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, across = rows - top, columns - left
    image = np.arange(len(images))[:, None, None]
    upper = padded[image, top, left] * (1 - across) + padded[image, top, left + 1] * across
    lower = padded[image, top + 1, left] * (1 - across) + padded[image, top + 1, left + 1] * across
    sampled: Images = upper * (1 - down) + lower * down
    return sampled


def _mean_of_shifts(images: Images, shifts: list[tuple[int, int]]) -> Images:
    rows, columns = _grid(len(images))
    return _mean(_sampled(images, rows + down, columns + across) for down, across in shifts)


def _mean(parts: Iterable[Images]) -> Images:
    """The mean of images, of which only one part and the sum are in memory: ten thousand take 63 MB."""
    count, total = 0, np.zeros(())
    for part in parts:
        count, total = count + 1, total + part
    mean: Images = total / count
    return mean


def _sign(rng: np.random.Generator, count: int) -> Images:
    """-1 or 1 for each image, (n, 1, 1)."""
    signs: Images = rng.choice([-1.0, 1.0], (count, 1, 1))
    return signs


def _clouds(rng: np.random.Generator, count: int) -> Images:
    """Noise of four octaves, (n, 28, 28), 0..1."""
    rows, columns = _grid(count)
    total, weight = np.zeros((count, SIDE, SIDE)), 1.0
    for cells in (2, 4, 8, 16):
        coarse = np.zeros((count, SIDE, SIDE))
        coarse[:, : cells + 1, : cells + 1] = rng.random((count, cells + 1, cells + 1))
        step = cells / SIDE
        total = total + weight * _sampled(coarse, rows * step, columns * step)
        weight /= 2
    lowest, highest = (edge(total, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    clouds: Images = (total - lowest) / (highest - lowest)
    return clouds


def _ends(rng: np.random.Generator) -> list[tuple[float, float]]:
    """Two points on opposite borders, which a line through the image joins."""
    first, second = rng.uniform(0, SIDE - 1, 2)
    ends = [(0.0, float(first)), (float(SIDE - 1), float(second))]
    return ends if rng.random() < 0.5 else [(y, x) for x, y in ends]


def _line(points: list[tuple[float, float]], dotted: bool = False) -> Images:
    """One image (28, 28) with a white line, one pixel wide."""
    canvas = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(canvas).line(points, fill=255)
    line = np.asarray(canvas) / 255
    if dotted:
        rows, columns = np.mgrid[:SIDE, :SIDE]
        steep = abs(points[1][1] - points[0][1]) > abs(points[1][0] - points[0][0])
        line = line * ((rows if steep else columns) % 2)
    return line
