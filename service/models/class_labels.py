"""The names of the classes that skl2onnx and onnxmltools leave in a graph."""

import mmap
from collections.abc import Sequence
from pathlib import Path

from service.models.protobuf import fields, message_of, messages_of, numbers_of, text_of

ML_DOMAIN = "ai.onnx.ml"

CLASSES = "classes"
"""The constant that holds the classes if skl2onnx writes a classifier in ONNX's own operators."""

_GRAPH = 7
_NODES, _INITIALIZERS = 1, 5
_ATTRIBUTES, _DOMAIN = 5, 7
_ATTRIBUTE_NAME, _TENSOR_NAME = 1, 8
"""The fields of ModelProto and the messages in it on the way to the classes."""

_STRINGS, _INTS = 9, 8
_STRING_DATA, _INT32_DATA, _INT64_DATA = 6, 5, 7
"""The fields of AttributeProto and of TensorProto that hold them."""

_ATTRIBUTES_OF_CLASSES = ("classlabels_strings", "classlabels_ints", "classlabels_int64s")
"""Those of classifiers of the domain and of ZipMap."""


def read_class_labels(path: Path) -> tuple[str, ...]:
    """Return what `class_labels` finds in the graph of a file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return tuple(class_labels(data, message_of(data, range(len(data)), _GRAPH)))


def class_labels(data: mmap.mmap, graph: range) -> list[str]:
    """Return the names of a graph's classes, empty if it holds none. Raises ValueError if it is malformed."""
    for number, value in fields(data, graph):
        labels = []
        if number == _NODES and isinstance(value, range):
            labels = _of_node(data, value)
        elif number == _INITIALIZERS and isinstance(value, range):
            labels = _of_constant(data, value)
        if labels:
            return labels
    return []


def _of_node(data: mmap.mmap, node: range) -> list[str]:
    if text_of(data, node, _DOMAIN) != ML_DOMAIN:
        return []
    for attribute in messages_of(data, node, _ATTRIBUTES):
        if text_of(data, attribute, _ATTRIBUTE_NAME) in _ATTRIBUTES_OF_CLASSES:
            return _values(data, attribute, _STRINGS, [_INTS])
    return []


def _of_constant(data: mmap.mmap, tensor: range) -> list[str]:
    if text_of(data, tensor, _TENSOR_NAME) != CLASSES:
        return []
    return _values(data, tensor, _STRING_DATA, [_INT32_DATA, _INT64_DATA])


def _values(data: mmap.mmap, message: range, texts: int, numbers: Sequence[int]) -> list[str]:
    """Return the texts or numbers of a message's fields, as texts."""
    found = [
        data[place.start : place.stop].decode(errors="replace") for place in messages_of(data, message, texts)
    ]
    return found + [str(each) for field in numbers for each in numbers_of(data, message, field)]
