"""Bodies of the Open Inference Protocol: JSON, and behind it the bytes of tensors. Knows nothing of HTTP.

The specification says what the JSON holds
(https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md),
Triton's extension "binary_tensor_data" the rest
(https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.content.brief import shown
from service.content.codecs import row_bytes, rows_from_raw, tensor_from_json
from service.content.inference_requests import (
    InferenceBody,
    ModelTensors,
    RequestedOutput,
    add_input,
    add_output,
    answered_outputs,
    check_datatype,
    check_stateless,
    checked_id,
    checked_shape,
    flag,
    place_of,
    read_schedule,
    whole,
)
from service.content.json_bodies import check_numbers, load
from service.errors import InvalidInput
from service.models.tensors import Array


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
        add_input(inputs, *_input(entry, f"inputs[{index}]", model, max_rows, behind, text))
    behind.check_end()
    binary = flag(parameters, "binary_data_output")
    check_stateless(parameters, model.name)
    timeout, priority = read_schedule(parameters)
    name = fields.get("id")
    outputs = _outputs(fields, model, binary)
    return InferenceBody(
        "" if name is None else checked_id(name), inputs, outputs, binary, timeout=timeout, priority=priority
    )


REPEATED_JSON_BYTES = 4096
"""Longer JSON is not kept: each of many heads may have some."""


class RepeatedRequest:
    """A request whose elements are all behind its JSON, to read others with the same JSON without parsing it.

    Clients send the same JSON again and again: it says nothing of the elements.

    asked: the request without its inputs.
    """

    def __init__(self, text: bytes, body_bytes: int, asked: InferenceBody) -> None:
        self.asked = asked._replace(inputs={})
        self._text = text
        self._body_bytes = body_bytes
        self._tensors = [(name, each.shape, each.dtype, each.nbytes) for name, each in asked.inputs.items()]

    @classmethod
    def of(
        cls, body: bytes | memoryview, json_bytes: int | None, asked: InferenceBody
    ) -> "RepeatedRequest | None":
        """Return what `read_inference` made of a body, or None if the JSON holds elements or is long.

        json_bytes: as there.
        """
        if json_bytes is None or json_bytes > REPEATED_JSON_BYTES:
            return None
        if sum(each.nbytes for each in asked.inputs.values()) != len(body) - json_bytes:
            return None
        return cls(bytes(body[:json_bytes]), len(body), asked)

    def is_in(self, body: bytes | memoryview) -> bool:
        """Whether a body has this JSON, and as many bytes behind it."""
        return len(body) == self._body_bytes and body[: len(self._text)] == self._text

    def inputs(self, body: bytes | memoryview) -> Mapping[str, Array]:
        """Return the inputs in such a body: views of it if they are aligned."""
        inputs: dict[str, Array] = {}
        at = len(self._text)
        for name, shape, dtype, size in self._tensors:
            array: Array = np.ndarray(shape, dtype, body, at)
            inputs[name] = array if array.flags.aligned else array.copy()
            at += size
        return inputs


def write_inference(
    request: InferenceBody, model: ModelTensors, version: int, arrays: Sequence[Array], labels: Sequence[str]
) -> tuple[Mapping[str, object], list[bytes]]:
    """Return the JSON of a response, with its arrays as they are, and the bytes of tensors that follow it.

    The parameters and the errors are those of `answered_outputs`.
    """
    entries: list[Mapping[str, object]] = []
    behind: list[bytes] = []
    for output in answered_outputs(request, model, arrays, labels):
        entry: dict[str, object] = {
            "name": output.spec.name,
            "datatype": output.datatype,
            "shape": output.shape,
        }
        if output.binary:
            behind.append(output.tobytes())
            entry["parameters"] = {"binary_data_size": len(behind[-1])}
        elif output.classes is not None:
            entry["data"] = [text.decode() for text in output.classes]
        else:
            entry["data"] = np.ascontiguousarray(output.array).ravel()
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
    spec = model.inputs[place_of(fields.get("name"), where, model.inputs, model.name)]
    where = f"input {spec.name}"
    check_datatype(fields.get("datatype"), where, spec)
    shape = checked_shape(fields.get("shape"), where, spec, max_rows)
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
    size, expected = whole(parameters, "binary_data_size", 2**63 - 1), row_bytes(spec) * shape[0]
    if size != expected:
        raise InvalidInput(f"{where}: binary_data_size is {size}, expected {expected} for {list(shape)}")
    rows = rows_from_raw(behind.take(size, where), spec, max_rows)
    return spec.name, np.require(rows, requirements="A")  # the JSON before it may have any length


def _outputs(fields: Mapping[str, Any], model: ModelTensors, binary: bool) -> tuple[RequestedOutput, ...]:
    """Return the outputs that a request names. binary: for those that do not say."""
    asked: dict[str, RequestedOutput] = {}
    for index, entry in enumerate(_list(fields, "outputs")):
        where = f"outputs[{index}]"
        members = _members(entry, where)
        name = model.outputs[place_of(members.get("name"), where, model.outputs, model.name)].name
        add_output(asked, name, _parameters(members, f"output {name}"), binary)
    return tuple(asked.values())


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
