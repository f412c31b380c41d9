"""Images that show no digit: another data set's, letters and shapes drawn here, noise, changed digits.

The same seed gives the same images, with the same Pillow. Letters and shapes lie like MNIST's digits: in a
box of 20x20, centred, light on black. Those that look like a digit (O, I, S, Z, a circle) are left out.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training.datasets.splits import SIDE, Dataset

LETTERS = "ACEFHJKMNPRTUVWXYadefhkmnprtuwx"
SHAPES = ("triangle", "square", "star", "cross", "arrow", "grid", "disc", "hexagon")
DRAWN = 1000
"""Images of each kind that is drawn or made of digits."""

CANVAS = 112  # four times the size, reduced by averaging: smooth edges
BOX = 80

Images = NDArray[np.uint8]
Point = tuple[float, float]


def outliers(fashion: Dataset, digits: Dataset, seed: int) -> dict[str, Images]:
    """Return images that show no digit by kind, each (n, 28, 28) uint8.

    fashion: another data set, all of which is used. digits: what inverted and rotated ones are made of.
    """
    rng = np.random.default_rng(seed)
    turned = digits.images[digits.labels != 0][:DRAWN]  # a turned 0 is a 0
    return {
        "fashion": fashion.images,
        "letters": np.stack([_letter(rng) for _ in range(DRAWN)]),
        "shapes": np.stack([_shape(rng) for _ in range(DRAWN)]),
        "noise": rng.integers(0, 256, (DRAWN, SIDE, SIDE), dtype=np.uint8),
        "inverted": 255 - digits.images[:DRAWN],
        "rotated": np.ascontiguousarray(np.rot90(turned, axes=(1, 2))),
    }


def sizes(images: Mapping[str, Images]) -> dict[str, int]:
    """Return the number of images of each kind."""
    return {kind: len(some) for kind, some in images.items()}


def _letter(rng: np.random.Generator) -> Images:
    canvas = Image.new("L", (2 * CANVAS, 2 * CANVAS))
    text = LETTERS[rng.integers(len(LETTERS))]
    font = ImageFont.load_default(size=CANVAS)
    width = int(rng.integers(1, 5))
    ImageDraw.Draw(canvas).text((CANVAS, CANVAS), text, 255, font, anchor="mm", stroke_width=width)
    return _placed(canvas, float(rng.uniform(-12, 12)))


def _shape(rng: np.random.Generator) -> Images:
    canvas = Image.new("L", (2 * CANVAS, 2 * CANVAS))
    draw = ImageDraw.Draw(canvas)
    kind, width = SHAPES[rng.integers(len(SHAPES))], int(rng.integers(6, 15))
    left, right = CANVAS - BOX // 2, CANVAS + BOX // 2
    if kind in ("triangle", "square", "hexagon"):
        corners = {"triangle": 3, "square": 4, "hexagon": 6}[kind]
        points = _around(corners, [BOX / 2])
        draw.line([*points, points[0], points[1]], 255, width, joint="curve")
    elif kind == "star":
        draw.polygon(_around(10, [BOX / 2, BOX / 5]), 255)
    elif kind == "cross":
        draw.line([(left, left), (right, right)], 255, width)
        draw.line([(left, right), (right, left)], 255, width)
    elif kind == "arrow":
        draw.line([(left, CANVAS), (right, CANVAS)], 255, width)
        draw.line([(CANVAS, left), (right, CANVAS), (CANVAS, right)], 255, width, joint="curve")
    elif kind == "grid":
        for place in np.linspace(left, right, 3):
            draw.line([(place, left), (place, right)], 255, width // 2)
            draw.line([(left, place), (right, place)], 255, width // 2)
    else:
        draw.ellipse((left, left, right, right), 255)
    return _placed(canvas, float(rng.uniform(-180, 180)) if kind != "arrow" else float(rng.uniform(-60, 60)))


def _around(count: int, radii: list[float]) -> list[Point]:
    """Return points around the canvas's centre, at the given distances in turn."""
    angles = [2 * math.pi * number / count for number in range(count)]
    lengths = [radii[number % len(radii)] for number in range(count)]
    return [
        (CANVAS + length * math.cos(angle), CANVAS + length * math.sin(angle))
        for angle, length in zip(angles, lengths, strict=True)
    ]


def _placed(canvas: Image.Image, degrees: float) -> Images:
    """Return a drawing, rotated, as MNIST places a digit: 20 pixels long, its box in the centre of 28x28."""
    turned = canvas.rotate(degrees, Image.Resampling.BILINEAR)
    box = turned.getbbox()
    assert box is not None  # something is drawn
    cut = turned.crop(box)
    scale = 20 / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    small = cut.resize((width, height), Image.Resampling.BOX)
    placed = Image.new("L", (SIDE, SIDE))
    placed.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(placed, np.uint8)
