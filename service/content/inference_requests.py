"""Requests of the Open Inference Protocol: what the formats of HTTP and of gRPC have in common.

Triton's extensions "classification" and "schedule_policy" say what their parameters mean
(https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from service.content.brief import shown
from service.errors import InvalidInput, PayloadTooLarge
from service.models.manifest import TensorSpec
from service.models.tensors import Array

MAX_ID_CHARS = 1024

NORMAL, LOW = 1, 2
"""The levels of the parameter `priority`; 0 is the default, NORMAL."""

_STATEFUL = ("sequence_id", "sequence_start", "sequence_end")

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """The tensors of the model that a request is for."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class RequestedOutput(NamedTuple):
    """An output that the response shall hold.

    binary: whether its bytes shall follow the JSON. classes: how many of its largest elements shall be named;
        0 for all elements as they are.
    """

    name: str
    binary: bool = False
    classes: int = 0


class InferenceBody(NamedTuple):
    """A request.

    id: empty if it has none. inputs: (rows, ...) by name.
    outputs: in the order of the response; empty for all of the model. binary: whether the bytes of those that
        the request does not name shall follow the JSON.
    timeout: microseconds; 0 for none. priority: 0, NORMAL or LOW.
    """

    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...] = ()
    binary: bool = False
    timeout: int = 0
    priority: int = 0


class AnsweredOutput(NamedTuple):
    """An output of a response.

    classes: the texts that name the largest elements, row by row, if the request asked for them; the output
        is then of the datatype BYTES.
    """

    spec: TensorSpec
    array: Array
    binary: bool
    classes: Sequence[bytes] | None = None

    @property
    def datatype(self) -> str:
        """The datatype of what is sent."""
        return self.spec.datatype if self.classes is None else "BYTES"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is sent."""
        rows = len(self.array)
        return self.array.shape if self.classes is None else (rows, len(self.classes) // rows)

    def tobytes(self) -> bytes:
        """Return the bytes: elements little-endian, or each text after its length in 4 bytes."""
        if self.classes is None:
            return self.array.tobytes()
        return b"".join(_LENGTH.pack(len(text)) + text for text in self.classes)


def answered_outputs(
    request: InferenceBody, model: ModelTensors, arrays: Sequence[Array], labels: Sequence[str]
) -> Iterator[AnsweredOutput]:
    """Yield the outputs that a response shall hold, in their order.

    arrays: the outputs of the version that answered, (rows, ...), in its order.
    labels: of the classes of its first output; empty if they have none.
    Raises InvalidInput if the version, newer than the one that was asked for, lacks a requested output.
    """
    every = [RequestedOutput(spec.name, request.binary) for spec in model.outputs]
    for asked in request.outputs or every:
        place = place_of(asked.name, "outputs", model.outputs, model.name)
        array, classes = arrays[place], None
        if asked.classes:
            classes = _classes(array, asked.classes, labels if place == 0 else ())
        yield AnsweredOutput(model.outputs[place], array, asked.binary, classes)


def place_of(name: object, where: str, specs: Sequence[TensorSpec], model: str) -> int:
    """Return which of the tensors has this name. Raises InvalidInput."""
    for place, spec in enumerate(specs):
        if spec.name == name:
            return place
    known = ", ".join(spec.name for spec in specs)
    raise InvalidInput(f"{where}: name is {shown(name)}, model {model} expects one of {known}")


def check_datatype(seen: object, where: str, spec: TensorSpec) -> None:
    """Raise InvalidInput unless it is the tensor's datatype."""
    if seen != spec.datatype:
        raise InvalidInput(f"{where}: datatype is {shown(seen)}, expected {spec.datatype}")


def checked_shape(value: Any, where: str, spec: TensorSpec, max_rows: int) -> tuple[int, ...]:
    """Return the shape of rows of a tensor. Raises InvalidInput, PayloadTooLarge above `max_rows`."""
    sizes = value if isinstance(value, list) else []
    whole = bool(sizes) and all(type(size) is int for size in sizes)
    if not whole or tuple(sizes[1:]) != spec.shape[1:] or sizes[0] < 1:
        raise InvalidInput(f"{where}: shape is {shown(value)}, expected {list(spec.shape)}")
    if sizes[0] > max_rows:
        raise PayloadTooLarge(f"{where} has {sizes[0]} rows, expected at most {max_rows}")
    return tuple(sizes)


def add_input(inputs: dict[str, Array], name: str, array: Array) -> None:
    """Add an input to those of a request. Raises InvalidInput if it is there already."""
    if name in inputs:
        raise InvalidInput(f"input {name} is given twice, expected once")
    inputs[name] = array


def add_output(
    asked: dict[str, RequestedOutput], name: str, parameters: Mapping[str, Any], binary: bool
) -> None:
    """Add an output that a request names. binary: unless its parameters say. Raises InvalidInput."""
    where = f"output {name}"
    if name in asked:
        raise InvalidInput(f"{where} is asked for twice, expected once")
    if "shared_memory_region" in parameters:
        raise InvalidInput(f"{where} is asked for in shared memory, expected it in the body")
    classes = whole(parameters, "classification", 2**31)
    asked[name] = RequestedOutput(name, flag(parameters, "binary_data", binary), classes)


def check_stateless(parameters: Mapping[str, Any], model: str) -> None:
    """Raise InvalidInput if a request belongs to a sequence."""
    for name in _STATEFUL:
        if parameters.get(name):
            raise InvalidInput(f"{name} is {shown(parameters[name])}, but model {model} keeps no state")


def read_schedule(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Return a request's timeout in microseconds and its priority, 0 if it has none. Raises InvalidInput."""
    return whole(parameters, "timeout", 2**63 - 1), whole(parameters, "priority", LOW)


def flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return a parameter that is true or false. Raises InvalidInput."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {shown(value)}, expected true or false")
    return value


def whole(parameters: Mapping[str, Any], name: str, most: int) -> int:
    """Return a parameter that is a whole number in 0..most; 0 if it is absent. Raises InvalidInput."""
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidInput(f"{name} is {shown(value)}, expected a whole number in 0..{most}")
    return value


def checked_id(value: object) -> str:
    """Return a request's id. Raises InvalidInput."""
    if not isinstance(value, str) or len(value) > MAX_ID_CHARS:
        raise InvalidInput(f"id is {shown(value)}, expected text of at most {MAX_ID_CHARS} characters")
    return value


def _classes(array: Array, count: int, labels: Sequence[str]) -> list[bytes]:
    """Return `value:index:label` of each row's largest elements, descending; of equals the first."""
    flat = array.reshape(len(array), -1)
    # From the last element on, so that of equals the first one comes first once they are reversed.
    ascending = flat[:, ::-1].argsort(axis=1, kind="stable")
    largest = flat.shape[1] - 1 - ascending[:, ::-1][:, :count]
    value = "{:f}" if array.dtype.kind == "f" else "{:d}"
    texts = []
    for row, places in zip(flat.tolist(), largest.tolist(), strict=True):
        for place in places:
            label = f":{labels[place]}" if labels else ""
            texts.append(f"{value.format(row[place])}:{place}{label}".encode())
    return texts
