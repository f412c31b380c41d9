"""Write this folder's pictures from MNIST's test set: `python tests/digits/make.py [data/mnist]`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from training.datasets.splits import load

FOLDER = Path(__file__).parent


def photo(digit: np.ndarray) -> Image.Image:
    """A digit in dark ink on a sheet that is unevenly lit, as a camera sees it: (420, 560) RGB."""
    rng = np.random.default_rng(7)
    ink = Image.fromarray(digit).resize((224, 224), Image.Resampling.BICUBIC)
    strokes = np.zeros((420, 560), np.float32)
    strokes[120:344, 250:474] = np.asarray(ink) / 255
    light = np.linspace(235, 150, 560) * np.linspace(1.0, 0.85, 420)[:, None]
    gray = light * (1 - 0.8 * strokes) + rng.normal(0, 3, strokes.shape)
    tint = np.array([1.0, 0.97, 0.9])
    return Image.fromarray((gray[..., None] * tint).clip(0, 255).astype(np.uint8))


def main() -> None:
    """Write 0.png ... 9.png, digits.raw (the same ten, one after another) and seven.jpg."""
    test = load(Path(sys.argv[1] if len(sys.argv) > 1 else "data/mnist")).test
    firsts = [test.images[np.flatnonzero(test.labels == digit)[0]] for digit in range(10)]
    for digit, image in enumerate(firsts):
        Image.fromarray(image).save(FOLDER / f"{digit}.png", optimize=True)
    (FOLDER / "digits.raw").write_bytes(b"".join(image.tobytes() for image in firsts))
    photo(firsts[7]).save(FOLDER / "seven.jpg", quality=85)


if __name__ == "__main__":
    main()
