"""The cost of turning bodies into arrays and images into files."""

import base64
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from loadtests.peers.measure import images_of
from service.content import codecs
from service.content.picture_kinds import sniff
from service.content.pictures import PictureLimits, PixelBudget
from service.models.manifest import TensorSpec

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
MAX_ROWS = 4096
PIXELS = PixelBudget(PictureLimits(max_request_pixels=2**62))


def encoded(image: NDArray[np.uint8], file_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, file_format)
    return file.getvalue()


def drawing(side: int) -> NDArray[np.uint8]:
    """A thick dark stroke on a light sheet, (side, side)."""
    sheet = np.full((side, side), 230, np.uint8)
    sheet[side // 5 : -side // 5, side * 2 // 5 : side // 2] = 20
    return sheet


@pytest.mark.parametrize("rows", [1, 256])
def test_rows_from_raw(benchmark: BenchmarkFixture, rows: int) -> None:
    images = images_of(rows)
    seen = benchmark(codecs.rows_from_raw, images.tobytes(), IMAGES, MAX_ROWS)
    assert np.array_equal(seen, images)


def test_rows_from_json_lists(benchmark: BenchmarkFixture) -> None:
    images = images_of(1)
    seen = benchmark(codecs.rows_from_json, images.tolist(), IMAGES, MAX_ROWS, PIXELS)
    assert np.array_equal(seen, images)


def test_rows_from_json_base64(benchmark: BenchmarkFixture) -> None:
    images = images_of(1)
    text = base64.b64encode(images.tobytes()).decode("ascii")
    seen = benchmark(codecs.rows_from_json, text, IMAGES, MAX_ROWS, PIXELS)
    assert np.array_equal(seen, images)


def test_small_png(benchmark: BenchmarkFixture) -> None:
    image = images_of(1)[0]
    seen = benchmark(codecs.image_to_rows, encoded(image, "PNG"), IMAGES, PIXELS, "mnist-digit")
    assert np.array_equal(seen, image[np.newaxis])


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_drawing_of_512_pixels(benchmark: BenchmarkFixture, file_format: str) -> None:
    content = encoded(drawing(512), file_format)
    seen = benchmark(codecs.image_to_rows, content, IMAGES, PIXELS, "mnist-digit")
    assert seen.shape == (1, 28, 28)
    assert seen.max() == 255


def test_png_of_a_sheet_of_16(benchmark: BenchmarkFixture) -> None:
    images = images_of(16)
    content = benchmark(lambda: codecs.png_from_image(codecs.sprite(images)))
    assert sniff(content)
