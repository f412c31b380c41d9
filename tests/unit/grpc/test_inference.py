"""The RPCs over a real connection: what they pass on to the models, and what they tell of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import QueueFull
from service.grpc import open_inference_pb2 as pb
from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import image
from tests.support.http import settings as tiny
from tests.support.models import LATENT
from tests.support.noted import Noted
from tests.support.rpc import MODEL_INFER, Served, infer_request, served

REQUEST = infer_request(np.stack([image(7)]))


@pytest.fixture
def noted(predictor: LocalPredictor, monkeypatch: pytest.MonkeyPatch) -> Noted:
    return Noted(predictor, monkeypatch)


async def error_of(call: grpc.aio.UnaryUnaryCall) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_classifier_answers_each_row(rpc: Served) -> None:
    images = np.stack([image(place) for place in range(10)])
    call = rpc.client.call(infer_request(images, id="a request"), [("x-request-id", "mine")])
    response = await call
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("probabilities", "FP32", [10, 10])
    rows = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(10, 10)
    assert rows.argmax(1).tolist() == list(range(10))
    assert (response.id, response.model_name, response.model_version) == ("a request", "first-pixel", "1")
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-request-id"] == "mine"
    assert "compute;dur=" in trailers["server-timing"]
    assert rpc.calls == {("ModelInfer", "first-pixel", "200"): 1.0}


async def test_a_generator_takes_typed_contents(rpc: Served) -> None:
    z = np.random.default_rng(0).normal(size=(2, LATENT)).astype(np.float32)
    request = pb.ModelInferRequest(model_name="ramp")
    request.inputs.add(name="label", datatype="INT64", shape=[2]).contents.int64_contents.extend([3, 4])
    request.inputs.add(name="z", datatype="FP32", shape=z.shape).contents.fp32_contents.extend(z.ravel())
    typed = await rpc.client.call(request)
    for entry in request.inputs:
        entry.ClearField("contents")
    request.raw_input_contents.extend([np.array([3, 4]).tobytes(), z.tobytes()])
    assert await rpc.client.call(request) == typed
    assert list(typed.outputs[0].shape) == [2, 28, 28]


async def test_labels_are_named_on_request(rpc: Served) -> None:
    request = infer_request(np.stack([image(2)]), "another", model_version="3")
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    response = await rpc.client.call(request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [1, 1])
    assert response.raw_output_contents[0][4:].endswith(b":2:c")


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        (infer_request(np.zeros((1, 28, 28), np.uint8), "none"), "NOT_FOUND", "model 'none' is unknown"),
        (infer_request(np.zeros((1, 28, 28), np.uint8), model_version="9"), "NOT_FOUND", "has no version 9"),
        (infer_request(np.zeros((1, 28, 28), np.uint8), model_version="x"), "INVALID_ARGUMENT", "version is"),
        (infer_request(np.zeros((1, 28, 27), np.uint8)), "INVALID_ARGUMENT", "shape is [1, 28, 27], exp"),
        (
            infer_request(np.zeros((41, 28, 28), np.uint8)),
            "INVALID_ARGUMENT",
            "has 41 rows, expected at most",
        ),
        (pb.ModelInferRequest(model_name="first-pixel"), "INVALID_ARGUMENT", "inputs are [], model first-"),
        (pb.ModelMetadataRequest(name="none"), "NOT_FOUND", "model 'none' is unknown"),
        (pb.ModelConfigRequest(name="ramp", version="0"), "INVALID_ARGUMENT", "version is '0', expected"),
    ],
)
async def test_an_error_has_its_code_and_says_what_was_seen(
    rpc: Served, request_: Any, code: str, details: str
) -> None:
    seen, said = await error_of(rpc.client.call(request_))
    assert seen.name == code
    assert details in said


async def test_a_full_queue_says_when_to_come_back(
    rpc: Served, predictor: LocalPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise QueueFull("the queue is full", 7.0)

    monkeypatch.setattr(predictor, "submit", refuse)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.client.call(REQUEST)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(caught.value.trailing_metadata() or ())
    assert trailers["inkserve-reason"] == "queue_full"
    assert int(trailers["retry-after"]) in (7, 8)
    assert rpc.calls == {("ModelInfer", "first-pixel", "429"): 1.0}


async def test_details_of_an_unexpected_error_are_logged_and_not_sent(
    rpc: Served,
    predictor: LocalPredictor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(predictor, "submit", fail)
    assert await error_of(rpc.client.call(REQUEST)) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "a secret" in caplog.text


async def test_deadline_and_priority_are_those_that_the_client_sets(rpc: Served, noted: Noted) -> None:
    longest = 30.0
    for parameters, metadata, timeout, seconds, priority in (
        ({}, {}, None, longest, "normal"),
        ({}, {}, 3.0, 3.0, "normal"),
        ({}, {}, 3600.0, longest, "normal"),
        ({"timeout": 2_000_000, "priority": 2}, {}, 9.0, 2.0, "low"),
        ({"timeout": 20_000_000}, {"inkserve-timeout": "4"}, None, 4.0, "normal"),
        ({"priority": 1}, {"inkserve-priority": "low"}, None, longest, "normal"),
        ({}, {"inkserve-priority": "low"}, None, longest, "low"),
    ):
        request = infer_request(np.stack([image(1)]))
        for name, value in parameters.items():
            request.parameters[name].int64_param = value
        await rpc.client.call(request, list(metadata.items()), timeout)
        seen = noted.requests.pop()
        assert seen.priority == priority
        assert seen.deadline - time.monotonic() == pytest.approx(seconds, abs=0.9)


async def test_the_metadata_describe_the_server_and_its_models(rpc: Served) -> None:
    assert (await rpc.client.call(pb.ServerLiveRequest())).live
    assert (await rpc.client.call(pb.ServerReadyRequest())).ready
    assert (await rpc.client.call(pb.ServerMetadataRequest())).name == "inkserve"
    for name, version, ready in (("ramp", "", True), ("another", "3", True), ("ramp", "9", False)):
        asked = pb.ModelReadyRequest(name=name, version=version)
        assert (await rpc.client.call(asked)).ready == ready
    model = await rpc.client.call(pb.ModelMetadataRequest(name="first-pixel"))
    assert (model.name, list(model.versions), model.platform) == ("first-pixel", ["1"], "onnx_onnxv1")
    (tensor,) = model.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("images", "UINT8", [-1, 28, 28])
    config = (await rpc.client.call(pb.ModelConfigRequest(name="first-pixel"))).config
    assert (config.max_batch_size, config.backend) == (40, "onnxruntime")
    assert (config.input[0].data_type, list(config.input[0].dims)) == (pb.TYPE_UINT8, [28, 28])
    assert config.dynamic_batching.preferred_batch_size[-1] == 8


async def test_the_index_says_what_cannot_be_served(
    rpc: Served, predictor: LocalPredictor, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "7"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no graph")
    await predictor.reload()
    for only_ready, expected in ((False, ["broken"]), (True, [])):
        models = (await rpc.client.call(pb.RepositoryIndexRequest(ready=only_ready))).models
        assert {each.name for each in models} >= {"another", "first-pixel", "ramp"}
        assert [each.name for each in models if each.state == "UNAVAILABLE"] == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
async def test_a_damaged_request_is_answered_or_is_the_clients_mistake(
    rpc: Served, data: st.DataObject
) -> None:
    request = infer_request(np.stack([image(3)]), id="7")
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    request.parameters["timeout"].int64_param = 9_000_000
    sent = bytearray(request.SerializeToString())
    head = len(sent) - 784  # the pixels may hold anything
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, head - 1))
        if data.draw(st.booleans()):
            sent[place] = data.draw(st.integers(0, 255))
        else:
            sent[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    call = rpc.client.channel.unary_unary(MODEL_INFER)(bytes(sent))
    code, details = await call.code(), await call.details()
    assert code.name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"), details
    assert bool(details) == (code is not grpc.StatusCode.OK)


async def test_the_statistics_are_those_of_http(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    add_classifier("first-pixel", 3)
    add_generator()
    limits, metrics = tiny(tmp_path).model_copy(update={"serve_versions": "all"}), Metrics()
    predictor = LocalPredictor(limits, metrics)
    await predictor.start()
    transport = httpx.ASGITransport(create_app(predictor, limits, metrics))
    async with (
        served(predictor, limits, metrics=metrics) as rpc,
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        for version in ("1", "3"):
            await rpc.client.call(infer_request(np.stack([image(7)]), model_version=version))
        for asked, path in (
            (pb.ModelStatisticsRequest(), "/v2/models/stats"),
            (pb.ModelStatisticsRequest(name="first-pixel"), "/v2/models/first-pixel/stats"),
            (
                pb.ModelStatisticsRequest(name="first-pixel", version="3"),
                "/v2/models/first-pixel/versions/3/stats",
            ),
        ):
            expected = (await http.get(path)).json()
            assert ParseDict(expected, pb.ModelStatisticsResponse()) == await rpc.client.call(asked)
        assert [each["inference_count"] for each in expected["model_stats"]] == [1]
        for unknown in (
            pb.ModelStatisticsRequest(name="none"),
            pb.ModelStatisticsRequest(name="ramp", version="9"),
        ):
            seen, _ = await error_of(rpc.client.call(unknown))
            assert seen is grpc.StatusCode.NOT_FOUND
    await predictor.close()
