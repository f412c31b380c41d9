"""ModelInfer's messages: any tensors come through, and no request fails in another way."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.content.inference_requests import InferenceBody, ModelTensors, RequestedOutput
from service.errors import InvalidInput, PayloadTooLarge
from service.grpc.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from service.grpc.tensors import CONTENTS, read_infer, write_infer
from service.models.manifest import TensorSpec
from service.models.tensors import DTYPES, Array
from tests.support.any_tensors import MAX_ROWS, array_of, models

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 2, 2))
LABEL = TensorSpec(name="label", datatype="INT64", shape=(-1,))
HALVES = TensorSpec(name="halves", datatype="FP16", shape=(-1, 2))
SCORES = TensorSpec(name="scores", datatype="FP32", shape=(-1, 4))
ONE = ModelTensors("m", (IMAGES,), (SCORES,))

Change = Callable[[ModelInferRequest], object]


def message_of(arrays: Sequence[tuple[TensorSpec, Array]], *, raw: bool) -> ModelInferRequest:
    """What a client of these arrays sends."""
    message = ModelInferRequest(model_name="any")
    for spec, array in arrays:
        entry = message.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            message.raw_input_contents.append(array.tobytes())
        else:
            getattr(entry.contents, CONTENTS[spec.datatype]).extend(array.ravel().tolist())
    return message


@given(models(), st.integers(1, MAX_ROWS), st.data())
def test_any_tensors_come_through_in_any_format(model: ModelTensors, rows: int, data: st.DataObject) -> None:
    arrays = [
        (spec, array_of(spec, rows, data.draw(st.integers(0, 99))))
        for spec in data.draw(st.permutations(model.inputs))
    ]
    halves = any(spec.datatype == "FP16" for spec, _ in arrays)
    message = message_of(arrays, raw=halves or data.draw(st.booleans()))
    message.id = data.draw(st.text(max_size=9))
    message.parameters["timeout"].int64_param = 7
    message.parameters["priority"].uint64_param = 2
    message.parameters["mine"].string_param = "x"
    names = data.draw(st.lists(st.sampled_from([spec.name for spec in model.outputs]), unique=True))
    for name in names:
        message.outputs.add(name=name).parameters["classification"].int64_param = 2
    read = read_infer(ModelInferRequest.FromString(message.SerializeToString()), model, MAX_ROWS)
    assert read.inputs.keys() == {spec.name for spec in model.inputs}
    for spec, array in arrays:
        np.testing.assert_array_equal(read.inputs[spec.name], array, strict=True)
        assert read.inputs[spec.name].flags.aligned
    outputs = tuple(RequestedOutput(name, True, 2) for name in names)
    assert read._replace(inputs={}) == InferenceBody(message.id, {}, outputs, True, 7, 2)


def arrays_of(response: ModelInferResponse) -> dict[str, Array | list[list[str]]]:
    """The outputs as a client reads them: arrays, or lists of texts."""
    found: dict[str, Array | list[list[str]]] = {}
    for entry, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if entry.datatype != "BYTES":
            found[entry.name] = np.frombuffer(raw, DTYPES[entry.datatype]).reshape(entry.shape)
            continue
        texts, at = [], 0
        while at < len(raw):
            (length,) = struct.unpack_from("<I", raw, at)
            texts.append(raw[at + 4 : at + 4 + length].decode())
            at += 4 + length
        found[entry.name] = np.array(texts).reshape(entry.shape).tolist()
    return found


@given(models(), st.integers(1, MAX_ROWS), st.data())
def test_any_outputs_come_through(model: ModelTensors, rows: int, data: st.DataObject) -> None:
    arrays = [array_of(spec, rows, data.draw(st.integers(0, 99))) for spec in model.outputs]
    names = data.draw(st.lists(st.sampled_from([spec.name for spec in model.outputs]), unique=True))
    asked = InferenceBody("7", {}, tuple(RequestedOutput(name) for name in names))
    sent = write_infer(asked, model, 3, arrays, ()).SerializeToString()
    response = ModelInferResponse.FromString(sent)
    assert (response.model_name, response.model_version, response.id) == ("any", "3", "7")
    seen = arrays_of(response)
    assert list(seen) == (names or [spec.name for spec in model.outputs])
    for spec, array in zip(model.outputs, arrays, strict=True):
        if spec.name in seen:
            np.testing.assert_array_equal(seen[spec.name], array, strict=True)


def test_the_largest_elements_are_named() -> None:
    asked = InferenceBody("", {}, (RequestedOutput("scores", classes=2),))
    array = np.array([[0, 3, 1, 2], [5, 5, 0, 0]], np.float32)
    response = write_infer(asked, ONE, 1, [array], ("a", "b", "c", "d"))
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    assert arrays_of(response)["scores"] == [
        ["3.000000:1:b", "2.000000:3:d"],
        ["5.000000:0:a", "5.000000:1:b"],
    ]


def pixels(*, raw: bool = False) -> ModelInferRequest:
    return message_of([(IMAGES, np.arange(4, dtype=np.uint8).reshape(1, 2, 2))], raw=raw)


def changed(change: Change, *, raw: bool = False) -> ModelInferRequest:
    message = pixels(raw=raw)
    change(message)
    return message


def parameter(name: str, **value: Any) -> Change:
    return lambda message: message.parameters[name].CopyFrom(InferParameter(**value))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (changed(lambda m: m.raw_input_contents.extend([b"", b""])), "has 2 tensors, expected 1, one for"),
        (changed(lambda m: m.raw_input_contents.append(bytes(4))), "has both of contents and raw_input_con"),
        (
            changed(lambda m: m.raw_input_contents.__setitem__(0, b"x"), raw=True),
            "has 1 bytes, expected 4",
        ),
        (changed(lambda m: m.inputs[0].ClearField("contents")), r"uint_contents has 0 elements, expected 4 "),
        (changed(lambda m: m.inputs[0].contents.uint_contents.pop()), r"has 3 elements, expected 4 for \[1"),
        (
            changed(lambda m: m.inputs[0].contents.uint_contents.__setitem__(3, 256)),
            r"images\[3\] is 256, expected a whole number in 0..255",
        ),
        (changed(lambda m: setattr(m.inputs[0], "name", "image")), "name is 'image', model m expects one of"),
        (changed(lambda m: setattr(m.inputs[0], "datatype", "FP32")), "datatype is 'FP32', expected UINT8"),
        (changed(lambda m: m.inputs[0].shape.append(1)), r"shape is \[1, 2, 2, 1\], expected \[-1, 2, 2\]"),
        (changed(lambda m: m.inputs[0].ClearField("shape")), r"shape is \[\], expected \[-1, 2, 2\]"),
        (changed(lambda m: m.inputs.append(m.inputs[0])), "input images is given twice, expected once"),
        (
            changed(lambda m: m.inputs[0].parameters["shared_memory_region"].CopyFrom(InferParameter())),
            "is in shared memory, expected contents or raw_input_contents",
        ),
        (
            changed(lambda m: m.outputs.add(name="x")),
            r"outputs\[0\]: name is 'x', model m expects one of",
        ),
        (changed(lambda m: [m.outputs.add(name="scores") for _ in "12"]), "scores is asked for twice"),
        (changed(lambda m: setattr(m, "id", "x" * 1025)), "expected text of at most 1024 characters"),
        (changed(parameter("timeout", int64_param=-1)), "timeout is -1, expected a whole number in 0.."),
        (changed(parameter("timeout", double_param=1)), "timeout is 1.0, expected a whole number in 0.."),
        (changed(parameter("priority", int64_param=3)), "priority is 3, expected a whole number in 0..2"),
        (changed(parameter("priority")), "priority is None, expected a whole number in 0..2"),
        (changed(parameter("sequence_id", string_param="s")), "sequence_id is 's', but model m keeps no st"),
    ],
)
def test_an_error_says_what_was_seen_and_what_was_expected(message: ModelInferRequest, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read_infer(message, ONE, MAX_ROWS)


def test_float16_is_only_read_from_bytes() -> None:
    model, array = ModelTensors("m", (HALVES,), (SCORES,)), np.array([[1, 2]], np.float16)
    read = read_infer(message_of([(HALVES, array)], raw=True), model, MAX_ROWS)
    np.testing.assert_array_equal(read.inputs["halves"], array, strict=True)
    message = message_of([(HALVES, array)], raw=True)
    message.ClearField("raw_input_contents")
    with pytest.raises(InvalidInput, match="contents hold no FP16, expected raw_input_contents"):
        read_infer(message, model, MAX_ROWS)


@pytest.mark.parametrize("raw", [False, True])
def test_too_many_rows_are_rejected(raw: bool) -> None:
    rows = np.zeros((MAX_ROWS + 1, 2, 2), np.uint8)
    with pytest.raises(PayloadTooLarge, match="has 10 rows, expected at most 9"):
        read_infer(message_of([(IMAGES, rows)], raw=raw), ONE, MAX_ROWS)
