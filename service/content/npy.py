"""numpy's file format .npy (NEP 1): arrays to bytes, and bytes to rows of a tensor.

Never reads a pickle. numpy's own reader parses the header as Python, for which 10 kB of brackets take it
0.1 s.
"""

import io
import math
import re

import numpy as np

from service.content import codecs
from service.errors import InvalidInput
from service.models.manifest import TensorSpec
from service.models.tensors import Array

_MAGIC = re.compile(rb"\x93NUMPY(?:\x01\x00(.{2})|[\x02\x03]\x00(.{4}))", re.DOTALL)
_HEADER = re.compile(
    rb"\{\s*'descr'\s*:\s*'([<>=|]?)([biuf])([1248])'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,"
    rb"\s*'shape'\s*:\s*\(([0-9]{1,9}(?:\s*,\s*[0-9]{1,9}){0,7})?\s*,?\s*\)\s*,?\s*\}\s*"
)
MAX_HEADER_BYTES = 1024


def npy_from_array(array: Array) -> bytes:
    """Encode an array of numbers as a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def rows_from_npy(content: bytes, spec: TensorSpec, max_rows: int) -> Array:
    """Return the rows of a .npy file: one row or many, nested like the tensor or flat, of any kind of number.

    Raises InvalidInput for what is no such file, or holds what the tensor cannot; PayloadTooLarge above
    `max_rows`.
    """
    start, dtype, is_fortran, shape = _read_head(content, spec.name)
    if dtype.kind == "b":
        raise InvalidInput(f"{spec.name} is a .npy file of booleans, expected numbers")
    expected, seen = dtype.itemsize * math.prod(shape), len(content) - start
    if seen != expected:
        raise InvalidInput(f"{spec.name} is a .npy file of {dtype} {list(shape)} with {seen} bytes of data")
    array: Array = np.ndarray(shape, dtype, content, start, order="F" if is_fortran else "C")
    return codecs.rows_from_array(array, spec, max_rows)


def _read_head(content: bytes, name: str) -> tuple[int, np.dtype, bool, tuple[int, ...]]:
    """Return where the data begin, their dtype, whether the first axis varies fastest, and their shape."""
    magic = _MAGIC.match(content)
    if magic is None:
        raise InvalidInput(f"{name} is no .npy file of version 1, 2 or 3")
    size = int.from_bytes(magic[1] or magic[2], "little")
    header = content[magic.end() : magic.end() + min(size, MAX_HEADER_BYTES)]
    read = _HEADER.fullmatch(header)
    if read is None or len(header) < size:
        raise InvalidInput(
            f"{name} is a .npy file with the header {header[:100].decode('latin-1')!r}, expected an array of "
            "whole numbers or floats, as numpy.save writes it"
        )
    order, kind, bytes_, fortran, sizes = read.groups()
    try:
        dtype = np.dtype((order + kind + bytes_).decode("ascii"))
    except TypeError:  # one byte of a float
        raise InvalidInput(
            f"{name} is a .npy file of {kind.decode()}{bytes_.decode()}, expected numbers"
        ) from None
    shape = tuple(int(part) for part in (sizes or b"").split(b",") if part.strip())
    return magic.end() + size, dtype, fortran == b"True", shape
