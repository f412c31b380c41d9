"""Bytes and JSON to arrays and back, for any tensor that a manifest describes. Knows nothing of HTTP.

Sizes are bounded before anything is allocated: a picture by its header, rows by the byte count.
"""

import base64
import binascii
import contextlib
import io
import logging
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.content import digits
from service.content.brief import shown
from service.content.picture_kinds import sniff
from service.content.pictures import PixelBudget, in_bands, open_picture
from service.errors import InkserveError, InvalidInput, PayloadTooLarge
from service.models.manifest import Datatype, ImageLayout, Preprocess, TensorSpec
from service.models.tensors import DTYPES, Array, dtype_of

logger = logging.getLogger(__name__)

CAST_ROWS = 64
"""Rows of JSON that are cast to the tensor's dtype at a time."""

_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^,]*)?;base64,", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/", "=")
"""To the standard alphabet of base64, without padding (RFC 4648, section 5)."""


def rows_from_raw(content: bytes | memoryview, spec: TensorSpec, max_rows: int) -> Array:
    """Return a body's rows, which follow one another, little-endian: (rows, ...), a view of `content`.

    Raises InvalidInput if the length is not a multiple of a row's, PayloadTooLarge above `max_rows`.
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
    """Return the bytes of one row of a tensor."""
    return _row_layout(spec.datatype, spec.shape)[1]


@lru_cache
def _row_layout(datatype: Datatype, shape: tuple[int, ...]) -> tuple[np.dtype[Any], int]:
    """Return the dtype of a tensor and the bytes of one of its rows."""
    dtype = DTYPES[datatype]
    return dtype, dtype.itemsize * math.prod(shape[1:])


def image_to_rows(
    content: bytes, spec: TensorSpec, budget: PixelBudget, preprocess: Preprocess, declared: str = ""
) -> Array:
    """Decode a picture into one row of the tensor, (1, ...) uint8.

    preprocess: the manifest's `picture_preprocess`. declared: see `open_picture`.
    Raises InvalidInput if the file is broken or the model accepts no pictures, PayloadTooLarge beyond the
    budget, UnsupportedMedia.
    """
    layout = spec.image_layout()
    if layout is None:
        seen = f"{spec.name} is {spec.datatype} {list(spec.shape)}"
        raise InvalidInput(f"body is a picture, but {seen}, expected raw rows or JSON")
    if preprocess == "none":
        raise InvalidInput(
            "body is a picture, but the model accepts none (preprocess is none), expected raw rows or JSON"
        )
    picture = open_picture(content, budget, declared)
    try:
        if preprocess == "mnist-digit":
            return digits.digit_from_picture(picture).reshape(1, *spec.shape[1:])
        crop = preprocess == "center-crop"
        return _resized(picture, layout, crop=crop).reshape(1, *spec.shape[1:])
    except InkserveError:
        raise
    except Exception as error:  # whatever the picture is, it is the caller's
        logger.warning("a picture of %s %s cannot be used", picture.mode, picture.size, exc_info=error)
        raise InvalidInput(
            f"image of {picture.width} x {picture.height} pixels cannot be used, expected one of a digit"
        ) from None


def rows_from_json(
    value: Any, spec: TensorSpec, max_rows: int, budget: PixelBudget, preprocess: Preprocess = "none"
) -> Array:
    """Decode one row or a list of rows: each nested like the tensor, flat, or base64 (raw or a picture).

    preprocess: as in `image_to_rows`; by default pictures are rejected.
    Raises InvalidInput, naming the value that is wrong, PayloadTooLarge, and UnsupportedMedia.
    """

    def decode(text: str, name: str) -> Array:
        declared, content = _from_base64(text, name)
        if declared.startswith("image/") or sniff(content):
            declared = declared if declared.startswith("image/") else ""
            return image_to_rows(content, spec, budget, preprocess, declared)
        return rows_from_raw(content, spec, max_rows)

    if isinstance(value, str):
        return decode(value, spec.name)
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{spec.name} is {shown(value)}, expected a list of {_row_text(spec)}")
    if not any(isinstance(row, str) for row in value):
        rows = _rows_from_lists(value, spec.name, spec)
        _check_rows(len(rows), spec, max_rows)
        return rows
    _check_rows(len(value), spec, max_rows)  # before any picture is opened
    parts = []
    for index, row in enumerate(value):
        name = f"{spec.name}[{index}]"
        if isinstance(row, str):
            parts.append(decode(row, name))
        else:
            parts.append(_rows_from_lists([row], name, spec))
    rows = np.concatenate(parts)
    _check_rows(len(rows), spec, max_rows)
    return rows


def tensor_from_json(value: Any, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """Return a whole tensor of that shape from its elements in row-major order, flat or nested in any way.

    Raises InvalidInput, naming the value that is wrong.
    """
    try:
        array = _array(value if isinstance(value, list) else [value], spec)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{spec.name} has lists of different lengths, expected {list(shape)}") from None
    return tensor_from_array(array, shape, spec)


def tensor_from_array(array: Array, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """Return a whole tensor of that shape from its elements in row-major order, of any dtype.

    Raises InvalidInput, naming the value that is wrong.
    """
    kinds, expected = ("b", "booleans") if spec.datatype == "BOOL" else ("iuf", "numbers")
    if array.size != math.prod(shape):
        raise InvalidInput(
            f"{spec.name} has {array.size} elements, expected {math.prod(shape)} for shape {list(shape)}"
        )
    if array.dtype.kind not in kinds:
        raise InvalidInput(f"{spec.name} holds {_odd_one(array)}, expected {expected}")
    return _exact(array, spec.name, spec).reshape(shape)


def rows_from_array(array: Array, spec: TensorSpec, max_rows: int) -> Array:
    """Return an array of numbers as rows of the tensor, (rows, ...): one row or many, nested or flat.

    Raises InvalidInput for a wrong shape or a value that the tensor cannot hold, PayloadTooLarge.
    """
    shape = _rows_shape(array.shape, spec.name, spec)
    if not shape[0]:
        raise InvalidInput(f"{spec.name} has no rows, expected {_row_text(spec)}")
    _check_rows(shape[0], spec, max_rows)
    return _exact(array, spec.name, spec).reshape(shape)


def png_from_image(image: NDArray[np.uint8]) -> bytes:
    """Encode (height, width) or (height, width, 3) uint8 as a PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def png_from_row(row: Array, layout: ImageLayout) -> bytes:
    """Encode a row of an image input, uint8, as a PNG: the picture that the model sees."""
    if layout.channels == 1:
        row = row.reshape(layout.height, layout.width)
    elif layout.channels_first:
        row = np.moveaxis(row, 0, -1)
    return png_from_image(np.ascontiguousarray(row))


def sprite(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Arrange images (n, height, width, ...) in one picture, row by row.

    columns: if None, about as many as there are rows.
    """
    count, height, width = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    sheet = np.zeros((lines * columns, *images.shape[1:]), np.uint8)
    sheet[:count] = images
    grid = sheet.reshape(lines, columns, *images.shape[1:]).swapaxes(1, 2)
    return grid.reshape(lines * height, columns * width, *images.shape[3:])


def _resized(picture: Image.Image, layout: ImageLayout, *, crop: bool) -> NDArray[np.uint8]:
    """Return the picture's pixels in grey or RGB at the layout's size, in the order of its axes.

    crop: keep the picture's proportions, and cut off what exceeds the layout's on both sides.
    """
    flat = _flat(picture, "L" if layout.channels == 1 else "RGB")
    size = (layout.width, layout.height)
    pixels = np.asarray(ImageOps.fit(flat, size) if crop else flat.resize(size))
    if layout.channels == 3 and layout.channels_first:
        pixels = np.moveaxis(pixels, -1, 0)
    return np.ascontiguousarray(pixels)


def _flat(picture: Image.Image, mode: str) -> Image.Image:
    """Convert the picture to a mode; transparent parts become white."""
    if not picture.has_transparency_data:
        return picture.convert(mode)
    return in_bands(picture, mode, lambda band: _on_white(band).convert(mode))


def _on_white(picture: Image.Image) -> Image.Image:
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)


def _from_base64(text: str, name: str) -> tuple[str, bytes]:
    """Return the media type that a `data:` URL declares, empty if none, and the bytes.

    Line breaks and missing padding are accepted, and so is the URL-safe alphabet.
    """
    try:
        return "", base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        cause = error
    url = _DATA_URL.match(text)
    declared = "" if url is None else url[1].strip().lower()
    plain = "".join(text[url.end() if url else 0 :].split()).translate(_URL_SAFE).rstrip("=")
    try:
        return declared, base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{name} is {shown(text)}, expected base64: {cause}") from None


def _rows_from_lists(value: list[Any], name: str, spec: TensorSpec) -> Array:
    """Return the rows of nested lists: one row or many, nested like the tensor or flat.

    Many rows are cast some at a time, because as numpy's own numbers they take 8 bytes each, several times.
    """
    starts = range(0, len(value), CAST_ROWS) if _holds_rows(value, spec) else (0,)
    step = CAST_ROWS if len(starts) > 1 else len(value)
    casts, mistake, scale = [], None, _Scale()
    for start in starts:
        array = _numbers(value[start : start + step], name, spec)
        shape = _rows_shape(array.shape, name, spec)
        scale.add(array)
        try:
            casts.append(_exact(array, name, spec, start).reshape(shape))
        except InvalidInput as error:
            mistake = mistake or error
    if scale.is_of_one and spec.image_layout():
        raise InvalidInput(f"{name} has pixels in 0..1, expected 0..255: multiply them by 255")
    if mistake is not None:
        raise mistake
    return casts[0] if len(casts) == 1 else np.concatenate(casts)


def _holds_rows(value: list[Any], spec: TensorSpec) -> bool:
    """Whether the first element of a list is a row, rather than a part of one."""
    with contextlib.suppress(ValueError, OverflowError):
        return np.shape(value[0]) in (spec.shape[1:], (math.prod(spec.shape[1:]),))
    return False


def _numbers(value: list[Any], name: str, spec: TensorSpec) -> Array:
    try:
        array = _array(value, spec)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{name} has lists of different lengths, expected {_row_text(spec)}") from None
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{name} holds {_odd_one(array)}, expected {_row_text(spec)}")
    return array


def _array(value: list[Any], spec: TensorSpec) -> Array:
    """Return nested lists as an array. Raises ValueError for lists of different lengths.

    numpy makes floats of all numbers if one has a decimal point or needs the sign's bit, and a float keeps 53
    bits of a whole number. Where the tensor needs more, the numbers are taken one by one.
    """
    array = np.asarray(value)
    if array.dtype.kind != "f" or dtype_of(spec).kind not in "iu" or (np.abs(array) < 2**53).all():
        return array
    each = np.asarray(value, object)
    parts = [int(part) if isinstance(part, float) and part.is_integer() else part for part in each.flat]
    if all(isinstance(part, int) for part in parts):
        with contextlib.suppress(OverflowError):
            return np.array(parts, dtype_of(spec)).reshape(each.shape)
    return array


@dataclass(slots=True)
class _Scale:
    """The range of numbers that are seen in parts. is_fraction: whether any part has a decimal point."""

    lowest: float = math.inf
    highest: float = -math.inf
    is_fraction: bool = False

    def add(self, array: Array) -> None:
        self.is_fraction |= array.dtype.kind == "f"
        if array.size:
            self.lowest = min(self.lowest, array.min())
            self.highest = max(self.highest, array.max())

    @property
    def is_of_one(self) -> bool:
        """Whether the numbers lie in 0..1, as pixels that were divided by 255 do."""
        return self.is_fraction and self.lowest >= 0 and 0 < self.highest <= 1


def _rows_shape(seen: tuple[int, ...], name: str, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape (rows, ...) of one row or many, nested or flat."""
    shape = spec.shape[1:]
    flat = (math.prod(shape),)
    if seen in (shape, flat):
        return (1, *shape)
    if seen[1:] in (shape, flat):
        return (seen[0], *shape)
    raise InvalidInput(f"{name} has shape {list(seen)}, expected {_row_text(spec)}")


def _exact(array: Array, name: str, spec: TensorSpec, start: int = 0) -> Array:
    """Cast the array to the tensor's dtype. Raises InvalidInput for a value that the dtype cannot hold.

    start: the place of its first element, for the error.
    """
    dtype = dtype_of(spec)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    wrong = ~np.isfinite(cast) if dtype.kind == "f" else cast.astype(array.dtype) != array
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        beyond = array >= float(limits.max) + 1 if array.dtype.kind == "f" else array > limits.max
        wrong |= (array < limits.min) | beyond
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        where = f"{name}[{start + place[0]}]" + "".join(f"[{index}]" for index in place[1:])
        raise InvalidInput(f"{where} is {array[place]}, expected {_value_text(dtype)}")
    return cast


def _value_text(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return f"a whole number in {limits.min}..{limits.max}"
    return f"a number that {dtype} can hold"


def _row_text(spec: TensorSpec) -> str:
    """Describe the accepted formats of a row, for errors."""
    shape = list(spec.shape[1:])
    flat = f", {math.prod(shape)} numbers" if len(shape) > 1 else ""
    return f"rows of shape {shape}{flat} or base64"


def _odd_one(array: Array) -> str:
    """Return the first value of an array that is not a number."""
    for value in array.ravel().tolist():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return shown(value)
    return str(array.dtype)


def _check_rows(rows: int, spec: TensorSpec, max_rows: int) -> None:
    if rows > max_rows:
        raise PayloadTooLarge(f"{spec.name} has {rows} rows, expected at most {max_rows}")
