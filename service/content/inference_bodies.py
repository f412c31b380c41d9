"""Bodies of the Open Inference Protocol: JSON, and behind it the bytes of tensors. Knows nothing of HTTP.

The specification says what the JSON holds
(https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md),
Triton's extensions "binary_tensor_data", "classification" and "schedule_policy" the rest
(https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from service.content.brief import shown
from service.content.codecs import row_bytes, rows_from_raw, tensor_from_json
from service.content.json_bodies import check_numbers, load
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


def read_inference(
    body: bytes | memoryview, json_bytes: int | None, model: ModelTensors, max_rows: int
) -> InferenceBody:
    """Read a request.

    json_bytes: the length of the JSON, behind which the bytes of tensors follow; None if all is JSON, 0 if
        all are the rows of the model's only input.
    Raises InvalidInput, PayloadTooLarge above `max_rows`.
    """
    if json_bytes == 0:
        return _raw_rows(body, model, max_rows)
    if json_bytes is not None and json_bytes > len(body):
        raise InvalidInput(f"the body's JSON should have {json_bytes} bytes, but the body has {len(body)}")
    text = bytes(body[:json_bytes])
    behind = _Behind(memoryview(body)[len(text) :])
    fields = _members(load(text), "body")
    parameters = _parameters(fields, "body")
    inputs: dict[str, Array] = {}
    for index, entry in enumerate(_list(fields, "inputs")):
        name, array = _input(entry, f"inputs[{index}]", model, max_rows, behind, text)
        if name in inputs:
            raise InvalidInput(f"input {name} is given twice, expected once")
        inputs[name] = array
    behind.check_end()
    binary = _flag(parameters, "binary_data_output")
    for name in _STATEFUL:
        if parameters.get(name):
            raise InvalidInput(f"{name} is {shown(parameters[name])}, but model {model.name} keeps no state")
    return InferenceBody(
        _id(fields),
        inputs,
        _outputs(fields, model, binary),
        binary,
        timeout=_whole(parameters, "timeout", 2**63 - 1),
        priority=_whole(parameters, "priority", LOW),
    )


def write_inference(
    request: InferenceBody, model: ModelTensors, version: int, arrays: Sequence[Array], labels: Sequence[str]
) -> tuple[Mapping[str, object], list[bytes]]:
    """Return the JSON of a response, with its arrays as they are, and the bytes of tensors that follow it.

    arrays: the outputs of the version that answered, (rows, ...), in its order.
    labels: of the classes of its first output; empty if they have none.
    Raises InvalidInput if the version, newer than the one that was asked for, lacks a requested output.
    """
    every = [RequestedOutput(spec.name, request.binary) for spec in model.outputs]
    entries: list[Mapping[str, object]] = []
    behind: list[bytes] = []
    for asked in request.outputs or every:
        place = _place({"name": asked.name}, "outputs", model.outputs, model.name)
        spec, array = model.outputs[place], arrays[place]
        entry: dict[str, object] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
        if asked.classes:
            texts = _classes(array, asked.classes, labels if place == 0 else ())
            entry |= {"datatype": "BYTES", "shape": (len(array), len(texts) // len(array))}
            piece = b"".join(_LENGTH.pack(len(text)) + text for text in texts)
            data: object = [text.decode() for text in texts]
        elif asked.binary:
            piece, data = array.tobytes(), None
        else:
            piece, data = b"", np.ascontiguousarray(array).ravel()
        if asked.binary:
            behind.append(piece)
            entry["parameters"] = {"binary_data_size": len(piece)}
        else:
            entry["data"] = data
        entries.append(entry)
    named = {"model_name": model.name, "model_version": str(version)}
    return named | ({"id": request.id} if request.id else {}) | {"outputs": entries}, behind


class _Behind:
    """The bytes behind the JSON, taken piece by piece."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._taken = 0

    def take(self, size: int, where: str) -> memoryview:
        rest = len(self._content) - self._taken
        if size > rest:
            raise InvalidInput(
                f"{where}: binary_data_size is {size}, but {rest} bytes are left behind the JSON"
            )
        self._taken += size
        return self._content[self._taken - size : self._taken]

    def check_end(self) -> None:
        rest = len(self._content) - self._taken
        if rest:
            raise InvalidInput(f"{rest} bytes behind the JSON belong to no input, expected none")


def _raw_rows(body: bytes | memoryview, model: ModelTensors, max_rows: int) -> InferenceBody:
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise InvalidInput(f"the body has no JSON, but model {model.name} has several inputs: {names}")
    spec = model.inputs[0]
    rows = rows_from_raw(body, spec, max_rows)
    return InferenceBody("", {spec.name: rows}, binary=True)


def _input(
    entry: Any, where: str, model: ModelTensors, max_rows: int, behind: _Behind, text: bytes
) -> tuple[str, Array]:
    fields = _members(entry, where)
    spec = model.inputs[_place(fields, where, model.inputs, model.name)]
    where = f"input {spec.name}"
    if fields.get("datatype") != spec.datatype:
        raise InvalidInput(f"{where}: datatype is {shown(fields.get('datatype'))}, expected {spec.datatype}")
    shape = _shape(fields.get("shape"), where, spec, max_rows)
    parameters = _parameters(fields, where)
    if "shared_memory_region" in parameters:
        raise InvalidInput(f"{where} is in shared memory, expected data or binary_data_size")
    is_binary = parameters.get("binary_data_size") is not None
    if is_binary == (fields.get("data") is not None):
        seen = "both" if is_binary else "neither"
        raise InvalidInput(f"{where} has {seen} of data and binary_data_size, expected one of them")
    if not is_binary:
        if spec.datatype != "BOOL":
            check_numbers(fields["data"], spec.name, text)
        return spec.name, tensor_from_json(fields["data"], shape, spec)
    size, expected = _whole(parameters, "binary_data_size", 2**63 - 1), row_bytes(spec) * shape[0]
    if size != expected:
        raise InvalidInput(f"{where}: binary_data_size is {size}, expected {expected} for {list(shape)}")
    rows = rows_from_raw(behind.take(size, where), spec, max_rows)
    return spec.name, np.require(rows, requirements="A")  # the JSON before it may have any length


def _shape(value: Any, where: str, spec: TensorSpec, max_rows: int) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else []
    whole = bool(sizes) and all(type(size) is int for size in sizes)
    if not whole or tuple(sizes[1:]) != spec.shape[1:] or sizes[0] < 1:
        raise InvalidInput(f"{where}: shape is {shown(value)}, expected {list(spec.shape)}")
    if sizes[0] > max_rows:
        raise PayloadTooLarge(f"{where} has {sizes[0]} rows, expected at most {max_rows}")
    return tuple(sizes)


def _outputs(fields: Mapping[str, Any], model: ModelTensors, binary: bool) -> tuple[RequestedOutput, ...]:
    """Return the outputs that a request names. binary: for those that do not say."""
    asked: dict[str, RequestedOutput] = {}
    for index, entry in enumerate(_list(fields, "outputs")):
        where = f"outputs[{index}]"
        members = _members(entry, where)
        name = model.outputs[_place(members, where, model.outputs, model.name)].name
        where = f"output {name}"
        parameters = _parameters(members, where)
        if name in asked:
            raise InvalidInput(f"{where} is asked for twice, expected once")
        if "shared_memory_region" in parameters:
            raise InvalidInput(f"{where} is asked for in shared memory, expected it in the body")
        classes = _whole(parameters, "classification", 2**31)
        asked[name] = RequestedOutput(name, _flag(parameters, "binary_data", binary), classes)
    return tuple(asked.values())


def _place(fields: Mapping[str, Any], where: str, specs: Sequence[TensorSpec], model: str) -> int:
    """Return which of the tensors has the name in these fields."""
    name = fields.get("name")
    for place, spec in enumerate(specs):
        if spec.name == name:
            return place
    known = ", ".join(spec.name for spec in specs)
    raise InvalidInput(f"{where}: name is {shown(name)}, model {model} expects one of {known}")


def _classes(array: Array, count: int, labels: Sequence[str]) -> list[bytes]:
    """Return `value:index:label` of each row's largest elements, descending; of equals the first."""
    flat = array.reshape(len(array), -1)
    ascending = flat[:, ::-1].argsort(
        axis=1, kind="stable"
    )  # from the last element, so that reversing keeps ties
    largest = flat.shape[1] - 1 - ascending[:, ::-1][:, :count]
    value = "{:f}" if array.dtype.kind == "f" else "{:d}"
    texts = []
    for row, places in zip(flat.tolist(), largest.tolist(), strict=True):
        for place in places:
            label = f":{labels[place]}" if labels else ""
            texts.append(f"{value.format(row[place])}:{place}{label}".encode())
    return texts


def _members(value: Any, where: str) -> Mapping[str, Any]:
    """Return the members of an object. Clients may add some of their own, as KServe's does."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is {shown(value)}, expected a JSON object")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput(f"{name} is {shown(value)}, expected a list")
    return value


def _parameters(fields: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    value = fields.get("parameters")
    return {} if value is None else _members(value, f"parameters of {where}")


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {shown(value)}, expected true or false")
    return value


def _whole(parameters: Mapping[str, Any], name: str, most: int) -> int:
    """Return a parameter that is a whole number in 0..most; 0 if it is absent."""
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidInput(f"{name} is {shown(value)}, expected a whole number in 0..{most}")
    return value


def _id(fields: Mapping[str, Any]) -> str:
    value = fields.get("id")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_ID_CHARS:
        raise InvalidInput(f"id is {shown(value)}, expected text of at most {MAX_ID_CHARS} characters")
    return value
