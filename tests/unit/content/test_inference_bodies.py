"""Bodies of the Open Inference Protocol: any tensors come through, and no body fails in another way."""

import io
import json
import struct
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.content import decoder_frames
from service.content.body_jobs import BodyLimits, InferenceJob
from service.content.inference_bodies import (
    REPEATED_JSON_BYTES,
    RepeatedRequest,
    read_inference,
    write_inference,
)
from service.content.inference_requests import InferenceBody, ModelTensors, RequestedOutput
from service.errors import InvalidInput, PayloadTooLarge, RequestError
from service.http.responses import to_json
from service.models.manifest import TensorSpec
from service.models.tensors import DTYPES, Array, dtype_of
from tests.support.any_tensors import MAX_ROWS, array_of, models

Mode = Literal["flat", "nested", "binary"]
IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, 2, 2))
LABEL = TensorSpec(name="label", datatype="INT64", shape=(-1,))
MASK = TensorSpec(name="mask", datatype="BOOL", shape=(-1, 2))
SCORES = TensorSpec(name="scores", datatype="FP32", shape=(-1, 4))
MODEL = ModelTensors("m", (IMAGES, LABEL), (SCORES, LABEL))
ONE = ModelTensors("m", (IMAGES,), (SCORES,))


class Sent(NamedTuple):
    """A body, and the length of its JSON if something follows it."""

    body: bytes
    json_bytes: int | None


def request(arrays: Sequence[tuple[TensorSpec, Array, Mode]], **members: object) -> Sent:
    """What a client of these arrays sends."""
    inputs, behind = [], b""
    for spec, array, mode in arrays:
        entry: dict[str, Any] = {
            "name": spec.name,
            "shape": list(array.shape),
            "datatype": spec.datatype,
        }
        if mode == "binary":
            entry["parameters"] = {"binary_data_size": array.nbytes}
            behind += array.tobytes()
        else:
            entry["data"] = array.ravel().tolist() if mode == "flat" else array.tolist()
        inputs.append(entry)
    text = json.dumps({"inputs": inputs, **members}).encode()
    return Sent(text + behind, len(text) if behind else None)


def decoded_elsewhere(sent: Sent, model: ModelTensors) -> InferenceBody:
    """What comes back from a decoder process."""
    job = InferenceJob("", sent.json_bytes, model, BodyLimits(10**6, MAX_ROWS, 10**6))
    sent_to = b"".join(decoder_frames.pack_request(job, sent.body))
    asked = decoder_frames.read_request(io.BytesIO(sent_to).read)
    assert asked is not None
    result = asked[0].run(asked[1])
    sent_back = b"".join(decoder_frames.pack_reply(result, []))
    reply, _ = decoder_frames.read_reply(io.BytesIO(sent_back).read)
    assert isinstance(reply, InferenceBody)
    return reply


@given(models(), st.integers(1, MAX_ROWS), st.data())
def test_any_tensors_come_through_in_any_format(model: ModelTensors, rows: int, data: st.DataObject) -> None:
    seeds, modes = st.integers(0, 99), st.sampled_from(get_args(Mode))
    arrays = [
        (spec, array_of(spec, rows, data.draw(seeds)), data.draw(modes))
        for spec in data.draw(st.permutations(model.inputs))
    ]
    names = data.draw(st.lists(st.sampled_from(model.outputs), unique=True))
    outputs = [
        {"name": spec.name, "parameters": {"binary_data": binary, "classification": 2}}
        for spec in names
        for binary in [data.draw(st.booleans())]
    ]
    parameters = {"timeout": 7, "priority": 2, "binary_data_output": True, "content_type": "np"}
    text = data.draw(st.text(max_size=9))  # so that the bytes behind the JSON may begin anywhere
    sent = request(arrays, id=text, outputs=outputs, parameters=parameters)
    for read in (read_inference(*sent, model, MAX_ROWS), decoded_elsewhere(sent, model)):
        assert read.inputs.keys() == {spec.name for spec in model.inputs}
        for spec, array, _ in arrays:
            np.testing.assert_array_equal(read.inputs[spec.name], array, strict=True)
            assert read.inputs[spec.name].flags.aligned
        asked = [
            {"name": name, "parameters": {"binary_data": binary, "classification": classes}}
            for name, binary, classes in read.outputs
        ]
        assert asked == outputs
        rest = read._replace(inputs={}, outputs=())
        assert rest == InferenceBody(text, {}, (), binary=True, timeout=7, priority=2)
    repeated = RepeatedRequest.of(*sent, read)
    is_long = sent.json_bytes is not None and sent.json_bytes > REPEATED_JSON_BYTES
    assert (repeated is None) == (is_long or any(mode != "binary" for _, _, mode in arrays))
    if repeated is not None:
        others = [(spec, array_of(spec, rows, data.draw(seeds)), mode) for spec, _, mode in arrays]
        again = request(others, id=text, outputs=outputs, parameters=parameters)
        assert repeated.is_in(again.body)
        inputs = repeated.inputs(again.body)
        for spec, array, _ in others:
            np.testing.assert_array_equal(inputs[spec.name], array, strict=True)
            assert inputs[spec.name].flags.aligned
        assert repeated.asked == read._replace(inputs={})
        assert not repeated.is_in(again.body + b"\0")
        assert not repeated.is_in(again.body.replace(b'"timeout": 7', b'"timeout": 8'))


def read_response(answer: bytes, json_bytes: int) -> dict[str, Any]:
    """The outputs as a client reads them: arrays, or lists of texts."""
    fields, at = json.loads(answer[:json_bytes]), json_bytes
    outputs = {}
    for entry in fields["outputs"]:
        size = entry.get("parameters", {}).get("binary_data_size")
        assert (size is None) == ("data" in entry)
        if entry["datatype"] == "BYTES":
            texts = entry.get("data", [])
            end = at if size is None else at + size
            while at < end:
                (length,) = struct.unpack_from("<I", answer, at)
                texts.append(answer[at + 4 : at + 4 + length].decode())
                at += 4 + length
            outputs[entry["name"]] = np.array(texts).reshape(entry["shape"]).tolist()
            continue
        dtype = DTYPES[entry["datatype"]]
        if size is None:
            values = np.array(entry["data"], dtype)
        else:
            values = np.frombuffer(answer[at : at + size], dtype)
            at += size
        outputs[entry["name"]] = values.reshape(entry["shape"])
    assert at == len(answer)
    return outputs


def written(asked: InferenceBody, model: ModelTensors, arrays: Sequence[Array]) -> tuple[bytes, int]:
    answer, behind = write_inference(asked, model, 3, arrays, ("a", "b", "c", "d"))
    text = to_json(answer)
    return text + b"".join(behind), len(text)


@given(models(), st.integers(1, MAX_ROWS), st.data())
def test_any_outputs_come_through_in_any_format(model: ModelTensors, rows: int, data: st.DataObject) -> None:
    arrays = [array_of(spec, rows, data.draw(st.integers(0, 99))) for spec in model.outputs]
    names = data.draw(st.lists(st.sampled_from([spec.name for spec in model.outputs]), unique=True))
    outputs = tuple(RequestedOutput(name, data.draw(st.booleans())) for name in names)
    asked = InferenceBody("", {}, outputs, data.draw(st.booleans()))
    answer, json_bytes = written(asked, model, arrays)
    seen = read_response(answer, json_bytes)
    assert list(seen) == (names or [spec.name for spec in model.outputs])
    for spec, array in zip(model.outputs, arrays, strict=True):
        if spec.name in seen:
            np.testing.assert_array_equal(seen[spec.name], array, strict=True)


FOUR = st.lists(st.integers(-3, 3), min_size=4, max_size=4)


@given(st.lists(FOUR, min_size=1, max_size=3), st.integers(1, 6))
def test_the_largest_elements_are_named_in_their_order(rows: list[list[int]], count: int) -> None:
    array = np.array(rows, np.float32)
    for binary in (False, True):
        asked = InferenceBody("", {}, (RequestedOutput("scores", binary, count),))
        seen = read_response(*written(asked, ONE, [array]))["scores"]
        assert seen == [
            [
                f"{value:.6f}:{place}:{'abcd'[place]}"
                for place, value in sorted(enumerate(row), key=lambda each: (-each[1], each[0]))[:count]
            ]
            for row in rows
        ]


def test_elements_without_labels_are_named_by_their_places() -> None:
    asked = InferenceBody("x", {}, (RequestedOutput("label", classes=1), RequestedOutput("mask", classes=2)))
    model = ModelTensors("m", (), (SCORES, LABEL, MASK))
    arrays = [np.zeros((2, 4), np.float32), np.array([2**62 + 1, -5]), np.array([[0, 1], [0, 0]], bool)]
    seen = read_response(*written(asked, model, arrays))
    assert seen == {"label": [[f"{2**62 + 1}:0"], ["-5:0"]], "mask": [["1:1", "0:0"], ["0:0", "0:1"]]}


def test_the_response_names_the_version_and_repeats_the_id() -> None:
    answer, _ = write_inference(InferenceBody("x", {}), ONE, 3, [np.zeros((1, 4), np.float32)], ())
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "3", "x")
    answer, _ = write_inference(InferenceBody("", {}), ONE, 3, [np.zeros((1, 4), np.float32)], ())
    assert "id" not in answer


def test_an_output_that_a_newer_version_lacks_is_named() -> None:
    asked = InferenceBody("", {}, (RequestedOutput("label"),))
    with pytest.raises(InvalidInput, match="name is 'label', model m expects one of scores"):
        write_inference(asked, ONE, 3, [np.zeros((1, 4), np.float32)], ())


def test_a_body_without_json_is_the_rows_of_the_only_input() -> None:
    read = read_inference(bytes(range(8)), 0, ONE, MAX_ROWS)
    assert read.inputs["images"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert (read.binary, read.outputs) == (True, ())


PIXELS = {"name": "images", "shape": [1, 2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]}


def with_input(**members: object) -> dict[str, object]:
    entry = {name: value for name, value in {**PIXELS, **members}.items() if value is not None}
    return {"inputs": [entry]}


def test_members_and_parameters_of_a_clients_own_are_ignored() -> None:
    """KServe's client sends model_name, MLServer's parameters of the tensors."""
    fields = {
        **with_input(parameters={"content_type": "np"}, extra=1),
        "model_name": "m",
        "parameters": {"a": 1},
    }
    outputs = [{"name": "scores", "parameters": {"b": 2}, "datatype": "FP32"}]
    read = read_inference(json.dumps({**fields, "outputs": outputs}).encode(), None, ONE, MAX_ROWS)
    assert read.inputs["images"].tolist() == [[[1, 2], [3, 4]]]
    assert read._replace(inputs={}) == InferenceBody("", {}, (RequestedOutput("scores"),))


def with_output(**parameters: object) -> dict[str, object]:
    return {**with_input(), "outputs": [{"name": "scores", "parameters": parameters}]}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ([], r"body is \[\], expected a JSON object"),
        ({"inputs": 7}, "inputs is 7, expected a list"),
        ({"inputs": [7]}, r"inputs\[0\] is 7, expected a JSON object"),
        ({**with_input(), "id": 7}, "id is 7, expected text of at most 1024 characters"),
        ({**with_input(), "id": "x" * 1025}, "expected text of at most 1024 characters"),
        ({**with_input(), "parameters": []}, r"parameters of body is \[\], expected a JSON object"),
        ({**with_input(), "parameters": {"timeout": -1}}, "timeout is -1, expected a whole number in 0.."),
        ({**with_input(), "parameters": {"timeout": True}}, "timeout is True, expected a whole number"),
        ({**with_input(), "parameters": {"priority": 3}}, "priority is 3, expected a whole number in 0..2"),
        ({**with_input(), "parameters": {"sequence_id": 5}}, "sequence_id is 5, but model m keeps no state"),
        ({**with_input(), "parameters": {"binary_data_output": 1}}, "is 1, expected true or false"),
        (with_input(name="image"), r"inputs\[0\]: name is 'image', model m expects one of images"),
        (with_input(name=None), r"inputs\[0\]: name is None, model m expects one of images"),
        (with_input(datatype="FP32"), "input images: datatype is 'FP32', expected UINT8"),
        (with_input(shape=[1, 4]), r"input images: shape is \[1, 4\], expected \[-1, 2, 2\]"),
        (with_input(shape=[0, 2, 2]), r"shape is \[0, 2, 2\], expected \[-1, 2, 2\]"),
        (with_input(shape=[1.0, 2, 2]), r"shape is \[1.0, 2, 2\], expected"),
        (with_input(shape=None), r"shape is None, expected \[-1, 2, 2\]"),
        (with_input(data=None), "has neither of data and binary_data_size, expected one of them"),
        (with_input(parameters={"binary_data_size": 4}), "has both of data and binary_data_size"),
        (with_input(parameters={"shared_memory_region": "r"}), "is in shared memory, expected data or"),
        (with_input(data=[1, 2, 3]), r"images has 3 elements, expected 4 for shape \[1, 2, 2\]"),
        (with_input(data=[[1, 2], [3]]), "images has lists of different lengths"),
        (with_input(data=[1, 2, 3, 256]), r"images\[3\] is 256, expected a whole number in 0..255"),
        (with_input(data=[1, 2, 3, 0.5]), r"images\[3\] is 0.5, expected a whole number"),
        (with_input(data=[1, 2, 3, True]), "images holds True, expected numbers"),
        (with_input(data=[1, 2, 3, "4"]), "images holds"),
        (with_input(data="AQIDBA=="), "images has 1 elements, expected 4"),
        ({"inputs": [PIXELS, PIXELS]}, "input images is given twice, expected once"),
        ({**with_input(), "outputs": [{"name": "x"}]}, r"outputs\[0\]: name is 'x', model m expects one"),
        ({**with_input(), "outputs": [{"name": "scores"}] * 2}, "output scores is asked for twice"),
        (with_output(binary_data="yes"), "binary_data is 'yes', expected true or false"),
        (with_output(classification=-1), "classification is -1, expected a whole number in 0.."),
        (with_output(shared_memory_region="r"), "is asked for in shared memory, expected it in the body"),
    ],
)
def test_an_error_says_what_was_seen_and_what_was_expected(fields: object, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read_inference(json.dumps(fields).encode(), None, ONE, MAX_ROWS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda sent: Sent(sent.body[:-1], sent.json_bytes), "binary_data_size is 4, but 3 bytes are left"),
        (lambda sent: Sent(sent.body + b"x", sent.json_bytes), "1 bytes behind the JSON belong to no input"),
        (lambda sent: Sent(sent.body, 9999), r"JSON should have 9999 bytes, but the body has \d+"),
        (lambda sent: Sent(sent.body, None), "body is not JSON"),
        (lambda sent: Sent(sent.body.replace(b'": 4}', b'": 3}'), sent.json_bytes), "is 3, expected 4 for"),
        (lambda sent: Sent(sent.body[:9], 0), "images has 9 bytes, expected a multiple of 4"),
    ],
)
def test_bytes_that_do_not_add_up_are_rejected(change: Any, problem: str) -> None:
    sent = request([(IMAGES, np.ones((1, 2, 2), np.uint8), "binary")])
    assert read_inference(*sent, ONE, MAX_ROWS).inputs["images"].tolist() == [[[1, 1], [1, 1]]]
    with pytest.raises(InvalidInput, match=problem):
        read_inference(*Sent(*change(sent)), ONE, MAX_ROWS)


def test_a_body_without_json_needs_a_model_of_one_input() -> None:
    with pytest.raises(InvalidInput, match="no JSON, but model m has several inputs: images, label"):
        read_inference(bytes(4), 0, MODEL, MAX_ROWS)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_too_many_rows_are_rejected(mode: Mode) -> None:
    sent = request([(IMAGES, np.zeros((MAX_ROWS + 1, 2, 2), np.uint8), mode)])
    with pytest.raises(PayloadTooLarge, match="has 10 rows, expected at most 9"):
        read_inference(*sent, ONE, MAX_ROWS)
    with pytest.raises(PayloadTooLarge, match="has 10 rows, expected at most 9"):
        read_inference(bytes(40), 0, ONE, MAX_ROWS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [each for key in keys for each in places(value[key])]


@given(st.data())
def test_a_damaged_request_is_read_or_rejected(data: st.DataObject) -> None:
    """Whatever one part of a request is replaced by, it is a request of whole rows, or a request error."""
    modes = st.sampled_from(get_args(Mode))
    arrays = [(spec, array_of(spec, 2, 0), data.draw(modes)) for spec in MODEL.inputs]
    outputs = [{"name": "scores", "parameters": {"binary_data": True, "classification": 2}}]
    sent = request(arrays, id="7", outputs=outputs, parameters={"timeout": 5, "priority": 1})
    fields = json.loads(sent.body[: sent.json_bytes])
    container, key = data.draw(st.sampled_from(places(fields)))
    container[key] = data.draw(JSON_VALUES)
    text = json.dumps(fields).encode()
    behind = sent.body[sent.json_bytes :] if sent.json_bytes is not None else b""
    json_bytes = data.draw(st.sampled_from([len(text), len(text), 0, len(text) - 1, len(text) + 1]))
    for body in (text + behind, data.draw(st.binary(max_size=20)) + behind):
        read, error = outcome(Sent(body, json_bytes))
        assert len(error) < 300
        for name, array in read.inputs.items():
            spec = next(spec for spec in MODEL.inputs if spec.name == name)
            assert (array.dtype, array.shape[1:]) == (dtype_of(spec), spec.shape[1:])
            assert 0 < len(array) <= MAX_ROWS


def outcome(sent: Sent) -> tuple[InferenceBody, str]:
    """What is read, and the error if it is rejected."""
    try:
        return read_inference(sent.body, sent.json_bytes, MODEL, MAX_ROWS), ""
    except RequestError as error:
        return InferenceBody("", {}), str(error)


def test_long_json_is_not_kept() -> None:
    sent = request([(ONE.inputs[0], np.zeros((1, 2, 2), np.uint8), "binary")], note="x" * REPEATED_JSON_BYTES)
    assert RepeatedRequest.of(*sent, read_inference(*sent, ONE, MAX_ROWS)) is None
