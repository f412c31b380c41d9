"""The IDX format, in which MNIST's files are written."""

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError


def read_idx(content: bytes, dimensions: int, where: str) -> NDArray[np.uint8]:
    """Decode one IDX file of unsigned bytes; `where` names it in errors.

    The format: two zero bytes, the type (8 is unsigned byte), the number of dimensions, each
    dimension as a big-endian uint32, then the bytes (LeCun, Cortes and Burges, the MNIST page).
    """
    magic, expected = content[:4], bytes([0, 0, 8, dimensions])
    if magic != expected:
        raise DataError(f"{where}: magic number is 0x{magic.hex()}, expected 0x{expected.hex()}")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{where}: the header is {len(content)} bytes, expected {header}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    length = header + int(np.prod(shape, dtype=object))
    if len(content) != length:
        raise DataError(f"{where}: {len(content)} bytes, expected {length} for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
