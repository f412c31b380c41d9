"""Walks the fields of a protobuf message. Knows nothing of ONNX.

A message inside a message is skipped unless the caller descends into it.
The service has no package that knows the format of graphs: onnxruntime opens these files, but does not list
what they name.
"""

import mmap
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(data: mmap.mmap, message: range) -> Iterator[tuple[int, int | range]]:
    """Yield a message's fields: number, and value or place. Raises ValueError if it is malformed."""
    position, end = message.start, message.stop
    while position < end:
        tag, position = _varint(data, position, end)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position, end)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type is {wire}, expected 0, 1, 2 or 5")
        if size > end - position:
            raise ValueError("it is cut short")
        if wire == _BYTES:
            yield tag >> 3, range(position, position + size)
        position += size


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Return a varint and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("it is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than 64 bits")
