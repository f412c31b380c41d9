"""Pictures of real digits, normalised like MNIST's: the result is close to MNIST's own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.content.digits import digit_from_picture
from service.errors import InvalidInput

FOLDER = Path(__file__).parents[2] / "digits"
DIGITS = range(10)


def mnist(digit: int) -> np.ndarray:
    return np.asarray(Image.open(FOLDER / f"{digit}.png"))


def large(digit: int, size: int = 200) -> np.ndarray:
    """The digit somewhere in a picture of 400 x 300 pixels, light on dark."""
    canvas = np.zeros((300, 400), np.uint8)
    canvas[20 : 20 + size, 90 : 90 + size] = np.asarray(Image.fromarray(mnist(digit)).resize((size, size)))
    return canvas


def alike(seen: np.ndarray, digit: int) -> float:
    """The correlation of two pictures, after the best shift of up to one pixel: MNIST rounds too."""
    expected = mnist(digit)
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    rolled = [np.roll(seen, shift, (0, 1)).ravel() for shift in shifts]
    return max(float(np.corrcoef(each, expected.ravel())[0, 1]) for each in rolled)


def transparent(strokes: np.ndarray, colour: int) -> Image.Image:
    rgba = np.full((*strokes.shape, 4), colour, np.uint8)
    rgba[..., 3] = strokes
    return Image.fromarray(rgba)


def yellow(strokes: np.ndarray) -> Image.Image:
    """Dark blue strokes on a yellow background."""
    return Image.fromarray(np.stack([255 - strokes, 255 - strokes, np.full_like(strokes, 90)], axis=-1))


FORMS = {
    "dark background": lambda digit: Image.fromarray(large(digit)),
    "light background": lambda digit: Image.fromarray(255 - large(digit)),
    "grey on grey": lambda digit: Image.fromarray((150 - large(digit) * 0.3).astype(np.uint8)),
    "colour": lambda digit: Image.fromarray(
        np.stack([255 - large(digit)] * 2 + [large(digit) * 0 + 200], -1)
    ),
    "palette": lambda digit: Image.fromarray(255 - large(digit)).convert("P"),
    "bilevel": lambda digit: Image.fromarray(255 - large(digit)).convert("1", dither=Image.Dither.NONE),
    "16 bits": lambda digit: Image.fromarray(65535 - large(digit).astype(np.uint16) * 257),
    "cmyk": lambda digit: Image.fromarray(255 - large(digit)).convert("CMYK"),
    "black strokes on nothing": lambda digit: transparent(large(digit), 0),
    "white strokes on nothing": lambda digit: transparent(large(digit), 255),
    "huge": lambda digit: Image.fromarray(255 - large(digit)).resize((4000, 3000)),
    "small": lambda digit: Image.fromarray(255 - large(digit)).resize((80, 60)),
}


@pytest.mark.parametrize("digit", DIGITS)
@pytest.mark.parametrize("form", FORMS)
def test_picture_becomes_the_digit_that_it_was_made_from(form: str, digit: int) -> None:
    seen = digit_from_picture(FORMS[form](digit))
    assert (seen.shape, seen.dtype) == ((28, 28), np.uint8)
    # The thinnest digits, resized twice, lose most: 0.9 is far above what two different digits share.
    assert alike(seen, digit) > 0.9


@pytest.mark.parametrize("digit", DIGITS)
def test_digit_of_28_pixels_is_unchanged(digit: int) -> None:
    assert np.array_equal(digit_from_picture(Image.fromarray(mnist(digit))), mnist(digit))
    assert np.array_equal(digit_from_picture(Image.fromarray(255 - mnist(digit))), mnist(digit))


@pytest.mark.parametrize("side", [40, 70, 110])
def test_ink_that_fills_a_corner_is_found(side: int) -> None:
    """It crosses the border, whose spread is then no measure of the noise."""
    sheet = np.full((280, 280), 255, np.uint8)
    sheet[:side, :side] = 0
    seen = digit_from_picture(Image.fromarray(sheet))
    assert (seen[4:24, 4:24].min(), seen[:3].max()) == (255, 0)


@pytest.mark.slow
def test_picture_of_noise_is_rejected_or_read_but_never_fails() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = rng.integers(1, 60, 2)
        noise = rng.integers(0, rng.integers(2, 257), shape, np.uint8)
        noise[rng.random(shape) < rng.random()] = rng.integers(0, 256)
        try:
            seen = digit_from_picture(Image.fromarray(noise))
        except InvalidInput:
            continue
        assert seen.shape == (28, 28)


def test_uneven_light_and_noise_do_not_hide_the_digit() -> None:
    assert alike(digit_from_picture(Image.open(FOLDER / "seven.jpg")), 7) > 0.9


@pytest.mark.parametrize("digit", DIGITS)
def test_digit_fills_20_pixels_and_is_centred(digit: int) -> None:
    seen = digit_from_picture(Image.fromarray(255 - large(digit)))
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    y, x = (float(seen.sum(axis) @ np.arange(28) / seen.sum()) for axis in (1, 0))
    assert (abs(y - 14), abs(x - 14)) < (1, 1)
    assert seen.max() == 255


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("L", (28, 28), 9), "every pixel has grey level 9, expected a digit"),
        (Image.new("RGB", (300, 200), "white"), "image is blank"),
        (Image.new("RGBA", (300, 200)), "image is blank"),
        (Image.new("L", (1, 1)), "image is blank"),
        (Image.linear_gradient("L").resize((300, 200)), "image has no ink"),
    ],
)
def test_a_picture_without_ink_is_refused(picture: Image.Image, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        digit_from_picture(picture)
