"""Finds what a graph computes just before it rounds its outputs.

Images are rounded to 256 levels, so two ways to sum the same floats nearly always give the same images: of
whether the floats differ, the images tell next to nothing.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path

from service.models.protobuf import message_of, messages_of, text_of

_GRAPH, _NODES, _OUTPUTS = 7, 1, 12
"""The fields of ModelProto and GraphProto that are read here, by number."""

_ROUNDING = frozenset({"Cast", "Ceil", "Floor", "QuantizeLinear", "Round"})
_PASSED = _ROUNDING | {
    "Clip",
    "Flatten",
    "Identity",
    "Max",
    "Min",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators between the last floats and an output, which say nothing more of the floats."""


def unrounded_tensors(graph: Path) -> list[str]:
    """Return the names of the tensors that become a graph's outputs by rounding. Raises ValueError."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        body = message_of(data, range(len(data)), _GRAPH)
        made_by: dict[str, tuple[str, str]] = {}  # by tensor: the operator, and its first input
        for node in messages_of(data, body, _NODES):
            step = text_of(data, node, 4), text_of(data, node, 1)
            made_by |= {data[each.start : each.stop].decode(): step for each in messages_of(data, node, 2)}
        outputs = [text_of(data, output, 1) for output in messages_of(data, body, _OUTPUTS)]
    found = (_before_rounding(name, made_by) for name in outputs)
    return sorted({name for name in found if name is not None} - {*outputs})


def with_outputs(graph: bytes, names: Sequence[str]) -> bytes:
    """Return a graph that has more outputs: tensors of its own, whose types onnxruntime infers.

    A message that occurs twice is merged: the second one holds only the outputs.
    """
    outputs = b"".join(_message(_OUTPUTS, _message(1, name.encode())) for name in names)
    return graph + _message(_GRAPH, outputs)


def _before_rounding(name: str, made_by: dict[str, tuple[str, str]]) -> str | None:
    rounded = False
    while name in made_by and made_by[name][0] in _PASSED and made_by[name][1] in made_by:
        operator, name = made_by[name]
        rounded = rounded or operator in _ROUNDING
    return name if rounded else None


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])
