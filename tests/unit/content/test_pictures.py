import io
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from service.content import codecs
from service.content.picture_files import read_jpeg, read_orientation, read_png
from service.content.picture_kinds import MEDIA_TYPES, format_of, sniff
from service.content.pictures import PictureLimits, PixelBudget, TooLargeForLoop, open_picture
from service.errors import InvalidInput, PayloadTooLarge, RequestError, UnsupportedMedia
from service.models.manifest import TensorSpec
from tests.support.pictures import FORMATS, encoded, seven

GRAY = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
FILES = {name: encoded(seven(), name) for name in FORMATS}
KINDS = {name: kind for kind, name in MEDIA_TYPES.items()}


def gray(content: bytes, declared: str = "") -> np.ndarray:
    return np.asarray(open_picture(content, PixelBudget(), declared).convert("L"), np.int16)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_decoded_as_declared_or_by_its_first_bytes(name: str) -> None:
    assert sniff(FILES[name]) == name
    for declared in ("", "image/*", KINDS[name]):
        assert np.abs(gray(FILES[name], declared) - np.asarray(seven())).mean() < 8


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_of_another_format_than_declared_is_rejected(name: str) -> None:
    for other in set(FORMATS) - {name}:
        with pytest.raises(InvalidInput, match=f"expected {other}"):
            gray(FILES[name], KINDS[other])


TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


@pytest.mark.parametrize("declared", ["image/svg+xml", "image/jxl", "image/x-icon", "image/"])
def test_a_type_that_cannot_be_decoded_is_unsupported(declared: str) -> None:
    with pytest.raises(UnsupportedMedia, match=r"declared as .*expected one of PNG, JPEG"):
        gray(FILES["PNG"], declared)


def test_an_undeclared_picture_that_cannot_be_decoded_is_unsupported() -> None:
    with pytest.raises(UnsupportedMedia, match="image is a JXL, expected"):
        gray(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100))


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(name: str) -> None:
    frames = [seven(), Image.new("L", seven().size, 0)]
    file = io.BytesIO()
    first, second = (each.convert("RGB") for each in frames)
    options = {"lossless": True} if name == "WEBP" else {}
    first.save(file, name, save_all=True, append_images=[second], **options)
    assert np.abs(gray(file.getvalue()) - np.asarray(seven())).mean() < 8


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def exif(orientation: int, order: str = "<", extra: bytes = b"") -> bytes:
    """An EXIF block with an orientation behind another entry."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHII", 0x011A, 5, 1, 1 << 30) + struct.pack(
        order + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    return head + struct.pack(order + "IH", 8, 2) + entries + extra


def with_segments(*segments: bytes) -> bytes:
    jpeg = FILES["JPEG"]
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_for_every_orientation(orientation: int, order: str) -> None:
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera did to the picture
    stored = seven() if orientation == 1 else seven().transpose(Image.Transpose(turn[orientation]))
    png = encoded(stored, "PNG")
    ihdr_end = 8 + 25
    block = exif(orientation, order)
    turned = png[:ihdr_end] + chunk(b"eXIf", block) + png[ihdr_end:]
    assert np.array_equal(gray(turned), np.asarray(seven()))
    jpeg = encoded(stored, "JPEG", quality=95, exif=b"Exif\0\0" + block)
    assert np.abs(gray(jpeg) - np.asarray(seven())).mean() < 4
    webp = encoded(stored, "WEBP", lossless=True, exif=b"Exif\0\0" + block)
    assert np.abs(gray(webp) - np.asarray(seven())).mean() < 4


@given(st.binary(max_size=64), st.integers(0, 60), st.integers(0, 255))
def test_any_exif_gives_an_orientation(noise: bytes, at: int, byte: int) -> None:
    block = bytearray(exif(6) + noise)
    block[at % len(block)] = byte
    for each in (noise, bytes(block), b"Exif\0\0" + noise, b"II*\0" + noise):
        assert 1 <= read_orientation(each) <= 8


BROKEN = {
    "rational beyond the block": exif(6),
    "cut off": exif(6)[:9],
    "negative": b"II*\0" + b"\xff" * 40,
    "loop": b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\x69\x87\x04\0\x01\0\0\0\x08\0\0\0" * 8,
}


@pytest.mark.parametrize("block", BROKEN.values(), ids=BROKEN)
def test_broken_metadata_never_breaks_a_picture(block: bytes) -> None:
    jpeg = with_segments(
        segment(0xE1, b"Exif\0\0" + block),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01" + block),
        segment(0xE2, b"MPF\0" + block),
        segment(0xED, b"Photoshop 3.0\0" + block),
        segment(0xFE, block),
    )
    png = FILES["PNG"]
    at = png.index(b"IEND") - 4
    late = b"".join(chunk(kind, block) for kind in (b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"gAMA", b"pHYs"))
    for content in (jpeg, png[:at] + late + png[at:], png[:33] + late + png[33:]):
        assert sorted(gray(content).shape) == [56, 56]


@pytest.mark.parametrize(("bits", "top"), [(10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_16_bits_are_scaled_by_the_bits_in_use(bits: int, top: int) -> None:
    pixels = (np.asarray(seven(), np.uint16) << (bits - 8)) | (np.asarray(seven()) >> (16 - bits))
    pixels[0, 0] = top
    seen = gray(encoded(Image.fromarray(pixels), "PNG"))
    seen[0, 0] = np.asarray(seven())[0, 0]
    assert np.abs(seen - np.asarray(seven())).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_greys_are_scaled_by_their_own_range(mode: str) -> None:
    pixels = np.asarray(seven(), np.float32) * 1000 - 7000
    picture = Image.fromarray(pixels if mode == "F" else pixels.astype(np.int32))
    seen = gray(encoded(picture, "TIFF"))
    assert (seen.min(), seen.max()) == (0, 255)


@pytest.mark.parametrize(
    ("width", "height"), [(6000, 4000), pytest.param(8000, 6000, marks=pytest.mark.slow)]
)
def test_a_phone_photo_is_decoded_at_a_reduced_scale(width: int, height: int) -> None:
    photo = encoded(seven().resize((width, height)), "JPEG", quality=60)
    picture = open_picture(photo, PixelBudget())
    assert 1_500_000 / 4 < picture.width * picture.height <= 1_500_000
    assert np.abs(np.asarray(picture.resize((56, 56))) - np.asarray(seven(), np.int16)).mean() < 12
    with pytest.raises(PayloadTooLarge, match=f"{width} x {height} pixels, expected at most 16000000"):
        open_picture(photo, PixelBudget(PictureLimits(max_jpeg_pixels=1000)))


def test_scans_are_counted_before_they_are_decoded() -> None:
    jpeg = encoded(seven(), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    slow = jpeg[:-2] + jpeg[last:-2] * 1000 + jpeg[-2:]
    with pytest.raises(PayloadTooLarge, match=r"image has 10\d\d scans, expected at most 100"):
        open_picture(slow, PixelBudget())
    assert read_jpeg(jpeg).scans < 20


def test_a_request_has_one_budget_of_pixels() -> None:
    budget = PixelBudget(PictureLimits(max_request_pixels=3 * 56 * 56))
    for _ in range(3):
        open_picture(FILES["PNG"], budget)
    with pytest.raises(PayloadTooLarge, match="pixels together"):
        open_picture(FILES["PNG"], budget)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("1", (4000, 4000)), "PNG"),
        encoded(seven(8), "JPEG", progressive=True) + b"\xff\xda" * 20,
        FILES["GIF"],
        encoded(seven(20), "JPEG"),
    ],
)
def test_the_event_loop_decodes_only_small_pictures(content: bytes) -> None:
    with pytest.raises(TooLargeForLoop):
        open_picture(content, PixelBudget(on_loop=True))


HIDDEN = {
    "PNG with a text before its size": FILES["PNG"][:8] + chunk(b"tEXt", b"a\0b"),
    "PNG with two sizes": FILES["PNG"][:33],
    "JPEG with a byte between its segments": b"\xff\xd8\xff\xfe\0\2\0",
    "JPEG with an escaped byte between its segments": b"\xff\xd8\xff\0",
}


@pytest.mark.parametrize("case", HIDDEN)
def test_size_that_only_the_decoder_finds_is_bounded_too(case: str) -> None:
    name = case[:4].strip()
    large = encoded(seven().resize((3000, 2000)), name)
    content = HIDDEN[case] + large[8 if name == "PNG" else 2 :]
    with pytest.raises(TooLargeForLoop):
        open_picture(content, PixelBudget(on_loop=True))
    with pytest.raises(PayloadTooLarge, match="3000 x 2000 pixels, expected at most 3136"):
        open_picture(content, PixelBudget(PictureLimits(max_image_pixels=3136, max_jpeg_pixels=3136)))


@pytest.mark.parametrize("junk", [b"\0", b"ab", b"\xff\0", b"\xff\0\xff\xff\0\0"])
def test_what_is_between_the_segments_of_a_jpeg_hides_nothing(junk: bytes) -> None:
    jpeg = with_segments(
        segment(0xE1, b"Exif\0\0" + BROKEN["cut off"]), junk, segment(0xE1, b"Exif\0\0" + exif(6))
    )
    assert read_jpeg(jpeg).content == read_jpeg(FILES["JPEG"]).content
    assert read_jpeg(jpeg).scans == read_jpeg(FILES["JPEG"]).scans
    assert np.array_equal(gray(jpeg), gray(FILES["JPEG"]))


def test_the_event_loop_decodes_pictures_of_mnist_s_size() -> None:
    for name in ("PNG", "JPEG"):
        assert open_picture(encoded(seven(2), name), PixelBudget(on_loop=True)).size == (28, 28)


def test_pixels_survive_the_removal_of_metadata() -> None:
    palette = seven().convert("P")
    palette.info["transparency"] = 3
    png = encoded(palette, "PNG", transparency=3)
    slim = Image.open(io.BytesIO(read_png(png).content))
    whole = Image.open(io.BytesIO(png))
    assert np.array_equal(np.asarray(slim.convert("RGBA")), np.asarray(whole.convert("RGBA")))
    for mode in ("L", "RGB", "CMYK"):
        jpeg = encoded(seven().convert(mode), "JPEG", dpi=(72, 72), comment=b"x" * 300)
        slim, whole = (Image.open(io.BytesIO(each)) for each in (read_jpeg(jpeg).content, jpeg))
        assert np.array_equal(np.asarray(slim), np.asarray(whole))


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Files with some bytes changed, cut out, put in or repeated."""
    place = st.integers(0, len(content))

    def change(at: int, length: int, new: bytes, repeat: int) -> bytes:
        return content[:at] + new * repeat + content[at + length :]

    return st.builds(change, place, st.integers(0, 40), st.binary(max_size=12), st.integers(0, 3))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_file_gives_a_row_or_a_request_error(name: str, data: st.DataObject) -> None:
    content = data.draw(mutations(FILES[name]))
    for decode in decoders(content, KINDS[name]):
        try:
            assert decode().shape == (1, 28, 28)
        except RequestError:
            continue


def decoders(content: bytes, declared: str) -> list[Callable[[], np.ndarray]]:
    return [
        partial(codecs.image_to_rows, content, GRAY, PixelBudget(), preprocess, declared)
        for preprocess in ("mnist-digit", "resize", "center-crop")
    ]


TIFF_MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"]


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(TIFF_MODES), st.integers(1, 40))
def test_a_picture_of_any_mode_and_size_gives_a_row_or_a_request_error(
    width: int, height: int, mode: str, strip: int
) -> None:
    """With a dark strip along one edge, as a desk beside the sheet."""
    pixels = np.full((height, width), 240, np.uint8)
    pixels[:, : min(strip, width)] = 10
    picture = Image.fromarray(pixels.astype(np.uint16) * 17 if mode == "I;16" else pixels)
    if mode == "LAB":
        picture = picture.convert("RGB")
        picture = ImageCms.applyTransform(picture, TO_LAB) or picture
    elif mode not in ("L", "I;16"):
        picture = picture.convert("RGB").convert(mode) if mode == "YCbCr" else picture.convert(mode)
    for decode in decoders(encoded(picture, "TIFF"), "image/tiff"):
        try:
            assert decode().shape == (1, 28, 28)
        except RequestError:
            continue


def test_the_format_of_nothing_known_is_none() -> None:
    assert format_of("", bytes(100)) is None


@pytest.mark.parametrize("name", ["WEBP", "GIF", "TIFF", "BMP"])
def test_the_memory_of_other_formats_is_bounded(name: str) -> None:
    content = encoded(Image.new("RGB", (600, 500)), name)
    open_picture(content, PixelBudget(PictureLimits(max_picture_bytes=600 * 500 * 16)))
    with pytest.raises(
        PayloadTooLarge, match=rf"image \({name}, 600 x 500 pixels\) takes .* expected at most 500000,"
    ):
        open_picture(content, PixelBudget(PictureLimits(max_picture_bytes=500_000)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WEBP", "AVIF", "TIFF", "JPEG"])
def test_photos_of_12_megapixels_are_taken_in_any_format_for_photos(name: str) -> None:
    picture = Image.new("RGB", (400, 300), "white").resize((4000, 3000))
    options = {"progressive": True} if name == "JPEG" else {}
    assert open_picture(encoded(picture, name, **options), PixelBudget()).height >= 750


@pytest.mark.parametrize("name", ["GIF", "BMP"])
def test_graphics_of_16_megapixels_take_too_much_memory(name: str) -> None:
    content = encoded(Image.new("L", (4000, 4000)), name)
    with pytest.raises(PayloadTooLarge, match=r"takes .* bytes to decode"):
        open_picture(content, PixelBudget())


def test_the_coefficients_of_a_progressive_jpeg_count() -> None:
    picture = Image.new("RGB", (3000, 2000), "white")
    budget = PixelBudget(PictureLimits(max_picture_bytes=12_000_000))
    assert open_picture(encoded(picture, "JPEG"), budget).size == (1500, 1000)
    for subsampling, each in ((0, 6), (2, 3)):
        content = encoded(picture, "JPEG", progressive=True, subsampling=subsampling)
        assert read_jpeg(content).kept_bytes == each * 3000 * 2000
        with pytest.raises(PayloadTooLarge, match=r"takes .* bytes to decode"):
            open_picture(content, budget)


@pytest.mark.parametrize("size", [(6000, 4000), (8064, 6048), (1100, 14000), (60000, 30)])
def test_a_large_jpeg_is_reduced_to_a_bounded_picture(size: tuple[int, int]) -> None:
    picture = open_picture(encoded(Image.new("L", size, 200), "JPEG"), PixelBudget())
    assert 375_000 < picture.width * picture.height <= 1_510_000
