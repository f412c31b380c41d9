import io
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from service.content import png_strips
from service.content.pictures import PixelBudget, open_picture
from service.errors import InvalidInput, PayloadTooLarge
from tests.support.pictures import encoded

RAMP = (np.add.outer(np.arange(701) * 5, np.arange(603) * 3) % 256).astype(np.uint8)
GREY = Image.fromarray(RAMP)
COLOURS = Image.fromarray(np.dstack([RAMP, RAMP[::-1], 255 - RAMP]))
PICTURES = {
    "1": GREY.convert("1"),
    "L": GREY,
    "LA": Image.fromarray(np.dstack([RAMP, 255 - RAMP])),
    "RGB": COLOURS,
    "RGBA": Image.fromarray(np.dstack([RAMP, RAMP[::-1], 255 - RAMP, RAMP])),
    "P": COLOURS.quantize(256),
    "P of 4 bits": COLOURS.quantize(16),
    "P of 2 bits": COLOURS.quantize(4),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def whole(content: bytes, factor: int) -> Image.Image:
    """Decode a PNG as Pillow does, then average it."""
    picture = Image.open(io.BytesIO(content))
    if picture.has_transparency_data:
        return picture.convert("RGBA").reduce(factor)
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB").reduce(factor)


def deep_png(pixels: np.ndarray, colours: int) -> bytes:
    """Return a PNG of 16 bits per channel, with a filter of each kind. pixels: (height, width, channels)."""
    height, width, channels = pixels.shape
    raw = pixels.astype(">u2").reshape(height, -1).view(np.uint8).astype(np.int16)
    left = np.pad(raw, ((0, 0), (2 * channels, 0)))[:, : raw.shape[1]]
    up = np.pad(raw, ((1, 0), (0, 0)))[:-1]
    kinds = np.arange(height) % 4
    guess = np.choose(kinds[:, None], [0 * raw, left, up, (left + up) // 2])
    rows = np.column_stack([kinds, (raw - guess) % 256]).astype(np.uint8).tobytes()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colours, 0, 0, 0])
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
@pytest.mark.parametrize("name", PICTURES)
def test_strips_give_the_pixels_of_the_whole_picture(name: str, factor: int) -> None:
    content = encoded(PICTURES[name], "PNG")
    expected = whole(content, factor)
    seen = png_strips.read_reduced(content, factor)
    assert seen.mode == expected.mode
    assert np.array_equal(np.asarray(seen), np.asarray(expected))


def test_a_transparent_colour_is_transparent_in_every_strip() -> None:
    for picture in (GREY, COLOURS.quantize(16)):
        content = encoded(picture, "PNG", transparency=3)
        assert np.array_equal(np.asarray(png_strips.read_reduced(content, 2)), np.asarray(whole(content, 2)))


@pytest.mark.parametrize(("channels", "colours"), [(2, 4), (3, 2), (4, 6)])
def test_wide_colours_are_read_by_their_high_bytes(channels: int, colours: int) -> None:
    pixels = np.dstack([np.roll(RAMP, 9 * i).astype(np.uint16) * 199 for i in range(channels)])
    seen = np.asarray(png_strips.read_reduced(deep_png(pixels, colours), 1))
    assert np.array_equal(seen[..., -1], pixels[..., -1] >> 8)
    assert np.array_equal(seen[..., 0], pixels[..., 0] >> 8)


def test_wide_greys_keep_all_their_bits() -> None:
    pixels = RAMP.astype(np.uint16)[..., None] * 199
    seen = png_strips.read_reduced(deep_png(pixels, 0), 1)
    assert seen.mode == "I;16"
    assert np.array_equal(np.asarray(seen), pixels[..., 0])


@pytest.mark.slow
def test_a_large_png_takes_the_memory_of_its_reduced_picture() -> None:
    content = encoded(Image.new("RGBA", (4000, 4000), "white"), "PNG")
    tracemalloc.start()
    try:
        picture = open_picture(content, PixelBudget())
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # without Pillow's own, 4 MB of pixels
    finally:
        tracemalloc.stop()
    assert picture.size == (1000, 1000)


@pytest.mark.parametrize("size", [10, 400, 1000])
def test_a_large_png_that_ends_early_is_broken(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    content = encoded(Image.fromarray(pixels), "PNG")
    with pytest.raises(InvalidInput, match="broken PNG"):
        open_picture(content[: 100 + size * 1000], PixelBudget())


def test_a_large_png_with_a_broken_stream_is_broken() -> None:
    content = bytearray(encoded(Image.fromarray(np.tile(RAMP, (3, 3))), "PNG"))
    content[2000:2100] = bytes(100)
    with pytest.raises(InvalidInput, match="broken PNG"):
        open_picture(bytes(content), PixelBudget())


def test_a_large_interlaced_png_is_bounded_by_its_memory() -> None:
    header = (4000).to_bytes(4, "big") * 2 + bytes([8, 6, 0, 0, 1])
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(PayloadTooLarge, match=r"takes 64000000 bytes to decode, expected at most 12582912"):
        open_picture(content, PixelBudget())


def test_a_header_behind_another_chunk_is_not_read_in_strips() -> None:
    content = encoded(Image.new("L", (1500, 1500), 7), "PNG")
    late = content[:8] + chunk(b"PLTE", bytes(3)) + content[8:]
    assert not png_strips.can_be_read(late, (1500, 1500))
    assert png_strips.can_be_read(content, (1500, 1500))
