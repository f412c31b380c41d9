"""Finds the files that an ONNX graph keeps its weights in, next to the graph itself.

Reads the few fields of the protobuf that can name such a file, and skips all others, weights included.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from service.errors import RepositoryError
from service.models.protobuf import fields

Kind = Literal["model", "graph", "function", "node", "attribute", "sparse", "training", "tensor"]

_INSIDE: dict[Kind, dict[int, Kind]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
"""The messages of onnx.proto that lead to tensors: the kind of each field, by number."""

_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
"""TensorProto's fields, and the location of a tensor whose data lies in another file."""

_DEEPEST = 100
"""Nested messages; protobuf's own readers refuse more."""


def external_files(graph: Path) -> set[str]:
    """Return the locations of the weights that lie outside the graph's file, as the graph writes them.

    Raises RepositoryError if the file is not an ONNX graph.
    """
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return set(_locations(data, range(len(data)), "model", 0))
    except ValueError as error:  # an empty file cannot be mapped
        raise RepositoryError(f"{graph} is not an ONNX graph: {error}") from None


def _locations(data: mmap.mmap, message: range, kind: Kind, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its messages are nested too deep")
    if kind == "tensor":
        yield from _locations_of_tensor(data, message)
        return
    for number, value in fields(data, message):
        inside = _INSIDE[kind].get(number)
        if inside is not None and isinstance(value, range):
            yield from _locations(data, value, inside, depth + 1)


def _locations_of_tensor(data: mmap.mmap, tensor: range) -> list[str]:
    found, external = [], False
    for number, value in fields(data, tensor):
        if number == _DATA_LOCATION:
            external = value == _EXTERNAL
        elif number == _EXTERNAL_DATA and isinstance(value, range):
            texts = ((key, text) for key, text in fields(data, value) if isinstance(text, range))
            entry = {key: data[text.start : text.stop] for key, text in texts}
            if entry.get(1) == b"location":
                found.append(entry.get(2, b"").decode())
    return found if external else []
