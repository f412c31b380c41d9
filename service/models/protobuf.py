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


def messages_of(data: mmap.mmap, message: range, number: int) -> Iterator[range]:
    """Yield a repeated field's messages, or texts."""
    for seen, value in fields(data, message):
        if seen == number and isinstance(value, range):
            yield value


def message_of(data: mmap.mmap, message: range, number: int) -> range:
    """Return a message inside a message; an empty one if it is left out."""
    return next(messages_of(data, message, number), range(0))


def number_of(data: mmap.mmap, message: range, number: int) -> int:
    """Return a field that is a number; 0 if it is left out."""
    values = (value for seen, value in fields(data, message) if seen == number and isinstance(value, int))
    return next(values, 0)


def numbers_of(data: mmap.mmap, message: range, number: int) -> list[int]:
    """Return a repeated field of signed numbers, packed or not."""
    found: list[int] = []
    for seen, value in fields(data, message):
        if seen != number:
            continue
        if isinstance(value, int):
            found.append(_signed(value))
            continue
        position = value.start
        while position < value.stop:
            packed, position = _varint(data, position, value.stop)
            found.append(_signed(packed))
    return found


def text_of(data: mmap.mmap, message: range, number: int) -> str:
    """Return a field that is a text; an empty one if it is left out."""
    place = message_of(data, message, number)
    return data[place.start : place.stop].decode()


def _signed(value: int) -> int:
    """Return a varint as the 64-bit number in two's complement that it stands for."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


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
