import base64
import io
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.content import codecs
from service.content.picture_files import JPEG_SIGNATURE, PNG_SIGNATURE
from service.content.picture_kinds import sniff
from service.content.pictures import PictureLimits, PixelBudget
from service.errors import InkserveError, InvalidInput, PayloadTooLarge
from service.models.manifest import Datatype, TensorSpec
from service.models.tensors import dtype_of

GRAY = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
COLOUR = TensorSpec(name="images", datatype="UINT8", shape=(-1, 4, 6, 3))
PLANES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 3, 4, 6))
LATENT = TensorSpec(name="z", datatype="FP32", shape=(-1, 2))
MANY = 10


def budget(most: int = 10_000) -> PixelBudget:
    return PixelBudget(PictureLimits(most, most, max_request_pixels=10 * most))


def picture(array: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array, np.uint8))
    image.save(file, kind, **options)
    return file.getvalue()


def from_json(value: Any, spec: TensorSpec = GRAY, most: int = MANY) -> np.ndarray:
    return codecs.rows_from_json(value, spec, most, budget(), "mnist-digit")


def digit() -> np.ndarray:
    image = np.zeros((28, 28), np.uint8)
    image[5:23, 12:16] = np.arange(18, dtype=np.uint8)[:, None] * 10 + 50
    return image


def test_raw_rows_are_a_view_of_the_body() -> None:
    body = np.arange(2 * 784, dtype=np.uint16).astype(np.uint8).tobytes()
    rows = codecs.rows_from_raw(body, GRAY, 2)
    assert rows.shape == (2, 28, 28)
    assert rows.tobytes() == body
    assert np.shares_memory(rows, np.frombuffer(body, np.uint8))


def test_raw_numbers_are_little_endian() -> None:
    assert codecs.rows_from_raw(b"\x00\x00\x80\x3f\x00\x00\x00\xc0", LATENT, 1).tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize(
    ("count", "error"), [(0, InvalidInput), (783, InvalidInput), (3 * 784, PayloadTooLarge)]
)
def test_raw_rows_are_counted_before_they_are_read(count: int, error: type[InkserveError]) -> None:
    with pytest.raises(error, match="images has"):
        codecs.rows_from_raw(bytes(count), GRAY, 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_first_bytes_identify_a_picture(kind: str) -> None:
    assert sniff(picture(digit(), kind)) == kind
    assert sniff(digit().tobytes()) is None


def test_png_of_a_digit_is_unchanged() -> None:
    rows = codecs.image_to_rows(picture(digit()), GRAY, budget(), "mnist-digit")
    assert np.array_equal(rows, digit()[None])


def test_resize_leaves_everything_where_it_was() -> None:
    """A shirt in the corner of a photo, say: cropping and centring would move and enlarge it."""
    photo = np.full((280, 280), 255, np.uint8)
    photo[:70, :70] = 0
    resized = codecs.image_to_rows(picture(photo), GRAY, budget(100_000), "resize")[0]
    assert (resized[:6, :6].max(), resized[8:, 8:].min()) == (0, 255)
    digit = codecs.image_to_rows(picture(photo), GRAY, budget(100_000), "mnist-digit")[0]
    assert (digit[:4].max(), digit[14, 14]) == (0, 255)


def test_resize_keeps_a_picture_of_the_right_size_bit_by_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    assert np.array_equal(codecs.image_to_rows(picture(pixels), GRAY, budget(), "resize")[0], pixels)


@pytest.mark.parametrize(
    ("width", "height", "left", "upper"), [(112, 28, 42, 0), (28, 84, 0, 28), (28, 28, 0, 0)]
)
def test_center_crop_cuts_off_what_exceeds_the_proportions(
    width: int, height: int, left: int, upper: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    (row,) = codecs.image_to_rows(picture(pixels), GRAY, budget(), "center-crop")
    assert np.array_equal(row, pixels[upper : upper + 28, left : left + 28])


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([GRAY, COLOUR, PLANES]))
def test_center_crop_takes_a_picture_of_any_proportions(width: int, height: int, spec: TensorSpec) -> None:
    light = Image.new("L", (width, height), 200)
    rows = codecs.image_to_rows(picture(light), spec, budget(100_000), "center-crop")
    assert rows.shape == (1, *spec.shape[1:])
    assert np.unique(rows).tolist() == [200]


@pytest.mark.parametrize("spec", [GRAY, COLOUR, PLANES])
def test_png_of_a_row_is_the_picture_that_became_it(spec: TensorSpec) -> None:
    layout = spec.image_layout()
    assert layout is not None
    channels = () if layout.channels == 1 else (layout.channels,)
    shape = (layout.height, layout.width, *channels)
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    (row,) = codecs.image_to_rows(picture(pixels), spec, budget(), "resize")
    png = codecs.png_from_row(row, layout)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)


@pytest.mark.parametrize("spec", [GRAY, COLOUR])
def test_model_that_accepts_no_pictures_rejects_them(spec: TensorSpec) -> None:
    message = r"model accepts none \(preprocess is none\), expected raw rows or JSON"
    with pytest.raises(InvalidInput, match=message):
        codecs.image_to_rows(picture(digit()), spec, budget(), "none")
    png = base64.b64encode(picture(digit())).decode()
    for value in (png, [png]):
        with pytest.raises(InvalidInput, match=message):
            codecs.rows_from_json(value, spec, MANY, budget())


def test_model_that_accepts_no_pictures_accepts_rows() -> None:
    raw = base64.b64encode(digit().tobytes()).decode()
    for value in (raw, [raw], digit().tolist()):
        assert np.array_equal(codecs.rows_from_json(value, GRAY, MANY, budget(), "none"), digit()[None])


def test_picture_is_resized_in_colour() -> None:
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 200
    rows = codecs.image_to_rows(picture(red), COLOUR, budget(), "resize")
    assert rows.shape == (1, 4, 6, 3)
    assert np.unique(rows.reshape(-1, 3), axis=0).tolist() == [[200, 0, 0]]
    assert np.array_equal(
        codecs.image_to_rows(picture(red), PLANES, budget(), "resize"), np.moveaxis(rows, -1, 1)
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_becomes_colour(mode: str) -> None:
    gray = Image.new("L", (12, 8), 255)
    image = Image.fromarray(np.full((8, 12), 65535, np.uint16)) if mode == "I;16" else gray.convert(mode)
    assert np.unique(codecs.image_to_rows(picture(image), COLOUR, budget(), "resize")).tolist() == [255]


def test_transparent_parts_become_white() -> None:
    clear = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    assert np.unique(codecs.image_to_rows(picture(clear), COLOUR, budget(), "resize")).tolist() == [255]


def test_a_jpeg_is_turned_upright() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = 255  # its left half is light; turned by 90 degrees clockwise, the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    spec = TensorSpec(name="images", datatype="UINT8", shape=(-1, 6, 4))
    rows = codecs.image_to_rows(picture(image, "JPEG", exif=exif, quality=95), spec, budget(), "resize")
    assert rows[0, 0].min() > 200
    assert rows[0, -1].max() < 50


@pytest.mark.parametrize(
    ("content", "spec", "error", "message"),
    [
        (b"GIF88a..", GRAY, InvalidInput, "begins with 47 49 46 38 38 61 2e 2e, expected PNG, JPEG, WEBP"),
        (picture(np.zeros((101, 100))), GRAY, PayloadTooLarge, "100 x 101 pixels, expected at most 10000"),
        (picture(digit())[:60], GRAY, InvalidInput, "image is a broken PNG"),
        (picture(digit(), "JPEG")[:-20], GRAY, InvalidInput, "image is a broken JPEG"),
        (picture(np.zeros((28, 28))), GRAY, InvalidInput, "image is blank"),
        (picture(digit()), LATENT, InvalidInput, r"z is FP32 \[-1, 2\], expected raw rows or JSON"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused(
    content: bytes, spec: TensorSpec, error: type[InkserveError], message: str
) -> None:
    with pytest.raises(error, match=message):
        codecs.image_to_rows(content, spec, budget(), "mnist-digit")


def test_small_file_of_a_huge_picture_is_refused() -> None:
    header = picture(np.zeros((1, 1)))
    huge = header[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + header[24:]
    with pytest.raises((InvalidInput, PayloadTooLarge)):
        codecs.image_to_rows(huge, GRAY, budget(), "mnist-digit")


def test_json_rows_may_be_nested_flat_or_base64() -> None:
    image = digit()
    raw, png = (base64.b64encode(each).decode() for each in (image.tobytes(), picture(image)))
    nested, flat = image.tolist(), image.ravel().tolist()
    for one in (nested, flat, raw, png):
        assert np.array_equal(from_json(one), image[None])
        assert np.array_equal(from_json([one, one]), np.stack([image, image]))
    assert np.array_equal(from_json([nested, raw, flat, png]), np.stack([image] * 4))


def test_json_numbers_become_floats() -> None:
    assert from_json([1, 2.5], LATENT).tolist() == [[1.0, 2.5]]
    rows = from_json([[1, 2], [3, 4]], LATENT)
    assert (rows.shape, rows.dtype) == ((2, 2), np.float32)


def changed(place: tuple[int, int], value: object) -> list[list[Any]]:
    image: list[list[Any]] = digit().tolist()
    image[place[0]][place[1]] = value
    return image


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"images is None, expected a list of rows of shape \[28, 28\], 784 numbers or base64"),
        ([], r"images is \[\], expected"),
        ({"a": 1}, "images is {'a': 1}, expected"),
        (changed((3, 4), 0.5), r"images\[3\]\[4\] is 0\.5, expected a whole number in 0\.\.255"),
        (changed((0, 0), 256), r"images\[0\]\[0\] is 256, expected a whole number in 0\.\.255"),
        (changed((0, 0), -1), r"images\[0\]\[0\] is -1, expected"),
        (changed((1, 2), None), "images holds None, expected"),
        (changed((1, 2), "x"), "images holds"),
        (changed((1, 2), [1]), "images has lists of different lengths"),
        (digit()[:27].tolist(), r"images has shape \[27, 28\], expected"),
        ([[True] * 784], "images holds True, expected"),
        (["****"], r"images\[0\] is '\*\*\*\*', expected base64"),
        ([base64.b64encode(b"abc").decode()], "images has 3 bytes, expected a multiple of 784"),
        ([2**70] * 784, "images holds"),
    ],
)
def test_wrong_json_is_named(value: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        from_json(value)


@pytest.mark.parametrize("number", [1e300, -1e39])
def test_number_out_of_range_is_named(number: float) -> None:
    with pytest.raises(InvalidInput, match=r"z\[0\]\[1\] is .*expected a number that float32 can hold"):
        from_json([[1.0, number]], LATENT)


@pytest.mark.parametrize("row", [digit().tolist(), base64.b64encode(digit().tobytes()).decode()])
def test_json_rows_are_bounded(row: object) -> None:
    assert len(from_json([row] * 3, most=3)) == 3
    with pytest.raises(PayloadTooLarge, match="images has 4 rows, expected at most 3"):
        from_json([row] * 4, most=3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


WHOLE_DATATYPES = [datatype for datatype in get_args(Datatype) if "INT" in datatype]


@given(st.data(), st.sampled_from(WHOLE_DATATYPES))
def test_whole_numbers_keep_every_digit_or_are_rejected(data: st.DataObject, datatype: Datatype) -> None:
    """However large they are, and whether or not clients write decimal points behind some."""
    spec = TensorSpec(name="numbers", datatype=datatype, shape=(-1, 3))
    limits = np.iinfo(dtype_of(spec))
    edges = [value + more for value in (limits.min, 0, 2**53, limits.max) for more in (-1, 0, 1)]
    any_number = st.integers(limits.min - 1, limits.max + 1) | st.sampled_from(edges)
    sent = data.draw(st.lists(any_number.flatmap(as_a_client_writes_it), min_size=3, max_size=3))
    if all(limits.min <= int(value) <= limits.max for value in sent):
        rows = from_json([sent], spec)
        assert rows.tolist() == [[int(value) for value in sent]]
    else:
        with pytest.raises(InvalidInput, match="expected"):
            from_json([sent], spec)


def as_a_client_writes_it(value: int) -> st.SearchStrategy[int | float]:
    """The number, or as a float where that is the same."""
    return st.sampled_from([value, float(value)] if int(float(value)) == value else [value])


@given(JSON)
def test_any_json_gives_rows_or_our_own_error(value: object) -> None:
    try:
        rows = from_json(value, LATENT)
    except InkserveError:
        return
    assert rows.shape[1:] == (2,)
    assert 1 <= len(rows) <= MANY


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", PNG_SIGNATURE, JPEG_SIGNATURE, picture(digit())[:60]]),
)
def test_any_bytes_give_a_picture_or_our_own_error(content: bytes, start: bytes) -> None:
    with pytest.raises(InkserveError):
        codecs.image_to_rows(start + content, GRAY, budget(), "mnist-digit")


@pytest.mark.parametrize(
    ("count", "size"), [(1, (28, 28)), (2, (28, 56)), (16, (112, 112)), (17, (112, 140))]
)
def test_a_sprite_is_read_row_by_row(count: int, size: tuple[int, int]) -> None:
    images = np.stack([np.full((28, 28), index + 1, np.uint8) for index in range(count)])
    sheet = codecs.sprite(images)
    assert sheet.shape == size
    cells = sheet[::28, ::28].ravel().tolist()
    assert cells[:count] == list(range(1, count + 1))
    assert set(cells[count:]) <= {0}


@pytest.mark.parametrize("shape", [(28, 28), (4, 6, 3)])
def test_a_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(codecs.png_from_image(pixels)))), pixels)
