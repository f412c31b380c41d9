"""numpy's file format .npy (NEP 1): arrays to bytes, and bytes to rows of a tensor. Never reads a pickle."""

import io
import math

import numpy as np

from service.content import codecs
from service.errors import InvalidInput
from service.models.manifest import TensorSpec
from service.models.tensors import Array

NUMBERS = "iuf"
"""Kinds of dtypes that are read: whole numbers with and without a sign, floats."""


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
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its version is {version}")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(file)
    except Exception as error:  # numpy parses a header as Python, whose errors are of many classes
        raise InvalidInput(f"{spec.name} is no .npy file: {str(error)[:200]}") from None
    if dtype.kind not in NUMBERS:
        raise InvalidInput(f"{spec.name} is a .npy file of {str(dtype)[:80]}, expected numbers")
    expected, seen = dtype.itemsize * math.prod(shape), len(content) - file.tell()
    if any(size < 0 for size in shape) or seen != expected:
        raise InvalidInput(
            f"{spec.name} is a .npy file of {str(shape)[:80]} {dtype}, {expected} bytes, but has {seen}"
        )
    array: Array = np.ndarray(shape, dtype, content, file.tell(), order="F" if is_fortran else "C")
    return codecs.rows_from_array(array, spec, max_rows)
