"""Bytes and JSON <-> arrays, for any tensor that a manifest describes. Knows nothing of HTTP.

Sizes are bounded before anything is allocated: a picture by its header, rows by the byte count.
"""

import base64
import binascii
import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.content import digits
from service.errors import InvalidInput, PayloadTooLarge
from service.models.manifest import Datatype, TensorSpec
from service.models.tensors import DTYPES, Array, dtype_of

FORMATS = ("PNG", "JPEG")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
SIGNATURE_BYTES = len(PNG_SIGNATURE)
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are broken, each plugin in its own way."""


def is_image(content: bytes) -> bool:
    """Whether the first bytes are those of a PNG or a JPEG."""
    return content.startswith((PNG_SIGNATURE, JPEG_SIGNATURE))


def rows_from_raw(content: bytes | memoryview, spec: TensorSpec, max_rows: int) -> Array:
    """Rows as they lie in memory, little-endian, one after another: (rows, ...), a view of `content`.

    Raises InvalidInput unless there is a whole number of rows, PayloadTooLarge above `max_rows`.
    """
    dtype, row_bytes = _row_layout(spec.datatype, spec.shape)
    rows, rest = divmod(len(content), row_bytes)
    if rest or not rows:
        raise InvalidInput(
            f"{spec.name} has {len(content)} bytes, expected a multiple of {row_bytes}: "
            f"rows of {spec.datatype} {list(spec.shape[1:])}"
        )
    _check_rows(rows, spec, max_rows)
    return np.ndarray((rows, *spec.shape[1:]), dtype, content)


def row_bytes(spec: TensorSpec) -> int:
    """The bytes of one row of a tensor."""
    return _row_layout(spec.datatype, spec.shape)[1]


@lru_cache
def _row_layout(datatype: Datatype, shape: tuple[int, ...]) -> tuple[np.dtype[Any], int]:
    """The dtype of a tensor and the bytes of one of its rows."""
    dtype = DTYPES[datatype]
    return dtype, dtype.itemsize * math.prod(shape[1:])


def image_to_rows(content: bytes, spec: TensorSpec, max_pixels: int) -> Array:
    """A PNG or JPEG as one row of the tensor, (1, ...) uint8.

    28x28 grey becomes a digit in MNIST's way (`service.content.digits`); for any other size the picture is
    made grey or RGB and resized. Raises InvalidInput where the file is broken or the tensor does not
    hold images, PayloadTooLarge above `max_pixels`.
    """
    height, width, channels, first = _image_axes(spec)
    picture = _open(content, max_pixels)
    if (height, width, channels) == (digits.SIDE, digits.SIDE, 1):
        return digits.digit_from_picture(picture).reshape(1, *spec.shape[1:])
    pixels = np.asarray(_flat(picture, "L" if channels == 1 else "RGB").resize((width, height)))
    if channels == 3 and first:
        pixels = np.moveaxis(pixels, -1, 0)
    return np.ascontiguousarray(pixels).reshape(1, *spec.shape[1:])


def rows_from_json(value: Any, spec: TensorSpec, max_rows: int, max_pixels: int) -> Array:
    """One row or a list of rows: each nested as the tensor is, flat, or base64 (raw, PNG or JPEG).

    Raises InvalidInput, naming the value that is wrong, and PayloadTooLarge.
    """
    if isinstance(value, str):
        return _rows_from_base64(value, spec.name, spec, max_rows, max_pixels)
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{spec.name} is {_shown(value)}, expected a list of {_row_text(spec)}")
    if not any(isinstance(row, str) for row in value):
        rows = _rows_from_lists(value, spec.name, spec)
        _check_rows(len(rows), spec, max_rows)
        return rows
    _check_rows(len(value), spec, max_rows)  # before any picture is opened
    parts = []
    for index, row in enumerate(value):
        name = f"{spec.name}[{index}]"
        if isinstance(row, str):
            parts.append(_rows_from_base64(row, name, spec, max_rows, max_pixels))
        else:
            parts.append(_rows_from_lists([row], name, spec))
    rows = np.concatenate(parts)
    _check_rows(len(rows), spec, max_rows)
    return rows


def png_from_image(image: NDArray[np.uint8]) -> bytes:
    """A PNG of (height, width) or (height, width, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def sprite(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (n, height, width, ...) side by side in one picture, row by row, about as wide as high."""
    count, height, width = images.shape[:3]
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    sheet = np.zeros((lines * columns, *images.shape[1:]), np.uint8)
    sheet[:count] = images
    grid = sheet.reshape(lines, columns, *images.shape[1:]).swapaxes(1, 2)
    return grid.reshape(lines * height, columns * width, *images.shape[3:])


def _image_axes(spec: TensorSpec) -> tuple[int, int, int, bool]:
    """Height, width, channels of a row, and whether the channels come first. Raises InvalidInput."""
    shape = spec.shape[1:]
    if spec.datatype == "UINT8":
        if len(shape) == 2:
            return shape[0], shape[1], 1, False
        if len(shape) == 3 and shape[2] in (1, 3):
            return shape[0], shape[1], shape[2], False
        if len(shape) == 3 and shape[0] in (1, 3):
            return shape[1], shape[2], shape[0], True
    raise InvalidInput(
        f"body is a picture, but {spec.name} is {spec.datatype} {list(spec.shape)}, expected raw rows or JSON"
    )


def _open(content: bytes, max_pixels: int) -> Image.Image:
    """The picture, upright as its EXIF says. Its size is known from its header, before its pixels are."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except PICTURE_ERRORS:
        raise InvalidInput(
            f"image of {len(content)} bytes begins with {content[:8].hex(' ')}, expected a PNG or a JPEG"
        ) from None
    if picture.width * picture.height > max_pixels:
        raise PayloadTooLarge(
            f"image has {picture.width} x {picture.height} pixels, expected at most {max_pixels}"
        )
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except PICTURE_ERRORS as error:
        raise InvalidInput(f"image is a broken {picture.format}: {error}, expected a whole file") from None


def _flat(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in that mode, on white where it is transparent."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        above = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return picture.convert(mode)


def _rows_from_base64(text: str, name: str, spec: TensorSpec, max_rows: int, max_pixels: int) -> Array:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{name} is {_shown(text)}, expected base64: {error}") from None
    if is_image(content):
        return image_to_rows(content, spec, max_pixels)
    return rows_from_raw(content, spec, max_rows)


def _rows_from_lists(value: list[Any], name: str, spec: TensorSpec) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{name} has lists of different lengths, expected {_row_text(spec)}") from None
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{name} holds {_odd_one(array)}, expected {_row_text(spec)}")
    shape = _rows_shape(array.shape, name, spec)
    return _exact(array, name, spec).reshape(shape)


def _rows_shape(seen: tuple[int, ...], name: str, spec: TensorSpec) -> tuple[int, ...]:
    """(rows, ...) of one row or many, nested or flat."""
    shape = spec.shape[1:]
    flat = (math.prod(shape),)
    if seen in (shape, flat):
        return (1, *shape)
    if seen[1:] in (shape, flat):
        return (seen[0], *shape)
    raise InvalidInput(f"{name} has shape {list(seen)}, expected {_row_text(spec)}")


def _exact(array: Array, name: str, spec: TensorSpec) -> Array:
    """The array in the tensor's dtype. Raises InvalidInput for a value that it cannot hold."""
    dtype = dtype_of(spec)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    wrong = ~np.isfinite(cast) if dtype.kind == "f" else cast.astype(array.dtype) != array
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        wrong |= (array < limits.min) | (array > limits.max)
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        where = name + "".join(f"[{index}]" for index in place)
        raise InvalidInput(f"{where} is {array[place]}, expected {_value_text(dtype)}")
    return cast


def _value_text(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return f"a whole number in {limits.min}..{limits.max}"
    return f"a number that {dtype} can hold"


def _row_text(spec: TensorSpec) -> str:
    """What a row may be, for errors."""
    shape = list(spec.shape[1:])
    flat = f", {math.prod(shape)} numbers" if len(shape) > 1 else ""
    return f"rows of shape {shape}{flat} or base64"


def _odd_one(array: Array) -> str:
    """The first value of an array that holds others than numbers."""
    for value in array.ravel().tolist():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _shown(value)
    return str(array.dtype)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check_rows(rows: int, spec: TensorSpec, max_rows: int) -> None:
    if rows > max_rows:
        raise PayloadTooLarge(f"{spec.name} has {rows} rows, expected at most {max_rows}")
