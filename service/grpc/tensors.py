"""ModelInfer's messages to arrays and back. Knows nothing of RPCs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.content.codecs import row_bytes, rows_from_raw, tensor_from_array
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
    place_of,
    read_schedule,
)
from service.errors import InvalidInput
from service.grpc.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from service.models.manifest import Datatype, TensorSpec
from service.models.tensors import Array

CONTENTS: dict[Datatype, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""The field of InferTensorContents that holds the elements of each datatype; FP16 has none."""


def read_infer(message: ModelInferRequest, model: ModelTensors, max_rows: int) -> InferenceBody:
    """Read a request. Raises InvalidInput, PayloadTooLarge above `max_rows`."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} tensors, expected {len(message.inputs)}, one for each input"
        )
    parameters = _parameters(message.parameters)
    inputs: dict[str, Array] = {}
    for index, entry in enumerate(message.inputs):
        content = raw[index] if raw else None
        add_input(inputs, *_input(entry, content, f"inputs[{index}]", model, max_rows))
    check_stateless(parameters, model.name)
    timeout, priority = read_schedule(parameters)
    return InferenceBody(
        checked_id(message.id),
        inputs,
        _outputs(message, model),
        binary=True,
        timeout=timeout,
        priority=priority,
    )


def write_infer(
    request: InferenceBody, model: ModelTensors, version: int, arrays: Sequence[Array], labels: Sequence[str]
) -> ModelInferResponse:
    """Return the response. The parameters and the errors are those of `answered_outputs`."""
    response = ModelInferResponse(model_name=model.name, model_version=str(version), id=request.id)
    for output in answered_outputs(request, model, arrays, labels):
        response.outputs.add(name=output.spec.name, datatype=output.datatype, shape=output.shape)
        response.raw_output_contents.append(output.tobytes())
    return response


def _input(
    entry: ModelInferRequest.InferInputTensor,
    raw: bytes | None,
    where: str,
    model: ModelTensors,
    max_rows: int,
) -> tuple[str, Array]:
    spec = model.inputs[place_of(entry.name, where, model.inputs, model.name)]
    where = f"input {spec.name}"
    check_datatype(entry.datatype, where, spec)
    shape = checked_shape(list(entry.shape), where, spec, max_rows)
    if "shared_memory_region" in entry.parameters:
        raise InvalidInput(f"{where} is in shared memory, expected contents or raw_input_contents")
    if raw is None:
        return spec.name, _typed(entry, where, spec, shape)
    if entry.contents.ByteSize():
        raise InvalidInput(f"{where} has both of contents and raw_input_contents, expected one of them")
    expected = row_bytes(spec) * shape[0]
    if len(raw) != expected:
        raise InvalidInput(
            f"{where}: raw_input_contents has {len(raw)} bytes, expected {expected} for {list(shape)}"
        )
    return spec.name, rows_from_raw(raw, spec, max_rows)


def _typed(
    entry: ModelInferRequest.InferInputTensor, where: str, spec: TensorSpec, shape: tuple[int, ...]
) -> Array:
    field = CONTENTS.get(spec.datatype)
    if field is None:
        raise InvalidInput(f"{where}: contents hold no {spec.datatype}, expected raw_input_contents")
    elements = getattr(entry.contents, field)
    expected = math.prod(shape)
    if len(elements) != expected:
        raise InvalidInput(
            f"{where}: {field} has {len(elements)} elements, expected {expected} for {list(shape)}"
        )
    return tensor_from_array(np.array(elements), shape, spec)


def _outputs(message: ModelInferRequest, model: ModelTensors) -> tuple[RequestedOutput, ...]:
    """Return the outputs that a request names."""
    asked: dict[str, RequestedOutput] = {}
    for index, entry in enumerate(message.outputs):
        place = place_of(entry.name, f"outputs[{index}]", model.outputs, model.name)
        add_output(asked, model.outputs[place].name, _parameters(entry.parameters), binary=True)
    return tuple(asked.values())


def _parameters(entries: Mapping[str, InferParameter]) -> Mapping[str, Any]:
    """Return the values of parameters; None for one without a value."""
    return {name: _value(entry) for name, entry in entries.items()} if entries else {}


def _value(entry: InferParameter) -> object:
    chosen = entry.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(entry, chosen)
