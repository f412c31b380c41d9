"""The Open Inference Protocol's routes: what they pass on to the models, and what they tell of them."""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.content.body_jobs import ON_LOOP_BYTES
from service.http.app import create_app
from service.http.headers import INFERENCE_HEADER
from service.models.manifest import MANIFEST_FILE
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import OCTETS, RAW, image, settings
from tests.support.models import LATENT, VECTORS_OF_WORDS, add_words, words_body
from tests.support.noted import Noted

INFER = "/v2/models/first-pixel/infer"
RAW_ROWS = {INFERENCE_HEADER.name: "0"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(
    predictor: LocalPredictor, tmp_path: Path, metrics: Metrics
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(predictor, settings(tmp_path), metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
def noted(predictor: LocalPredictor, monkeypatch: pytest.MonkeyPatch) -> Noted:
    return Noted(predictor, monkeypatch)


def body(rows: int = 1, **members: object) -> dict[str, object]:
    pixels = [image(place).tolist() for place in range(rows)]
    return {
        "inputs": [{"name": "images", "shape": [rows, 28, 28], "datatype": "UINT8", "data": pixels}],
        **members,
    }


def outputs(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


async def test_json_gives_what_classify_gives(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, json=body(3, id="a request"))
    classified = await client.post(
        "/classify?model=first-pixel",
        content=np.stack([image(place) for place in range(3)]).tobytes(),
        headers={"content-type": OCTETS, "accept": OCTETS},
    )
    expected = np.frombuffer(classified.content, np.float32)
    assert outputs(answer) == {"probabilities": expected.tolist()}
    assert answer.json()["outputs"][0]["shape"] == [3, 10]
    told = {name: answer.json()[name] for name in ("id", "model_name", "model_version")}
    assert told == {"id": "a request", "model_name": "first-pixel", "model_version": "1"}
    assert answer.headers["content-type"] == "application/json"
    assert INFERENCE_HEADER.name not in answer.headers
    assert "server-timing" in answer.headers


@pytest.mark.parametrize("kind", [None, "application/json", OCTETS, "text/plain"])
async def test_the_content_type_is_not_read(client: httpx.AsyncClient, kind: str | None) -> None:
    """tritonclient sends none, the C++ client octet-stream whatever the body."""
    headers = {} if kind is None else {"content-type": kind}
    text = json.dumps(body()).encode()
    assert outputs(await client.post(INFER, content=text, headers=headers))
    headers |= {INFERENCE_HEADER.name: str(len(text))}
    assert outputs(await client.post(INFER, content=text, headers=headers))
    raw = await client.post(INFER, content=RAW, headers=headers | RAW_ROWS)
    assert (raw.status_code, raw.headers["content-type"]) == (200, OCTETS)


async def test_rows_without_json_are_answered_with_bytes_behind_json(client: httpx.AsyncClient) -> None:
    response = await client.post(INFER, content=RAW * 2, headers=RAW_ROWS)
    length = int(response.headers[INFERENCE_HEADER.name])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [2, 10],
        "parameters": {"binary_data_size": 80},
    }
    assert np.frombuffer(response.content[length:], np.float32).reshape(2, 10).argmax(1).tolist() == [7, 7]


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
@pytest.mark.parametrize("rows", [1, 20])
async def test_bodies_may_be_compressed_and_large(
    client: httpx.AsyncClient, coding: str, compress: Any, rows: int
) -> None:
    """The larger body is read by a decoder process. The header counts the JSON without its coding."""
    text = json.dumps(body(rows)).encode()
    assert (len(text) > ON_LOOP_BYTES) == (rows > 1)
    expected = outputs(await client.post(INFER, content=text))
    for headers in ({}, {INFERENCE_HEADER.name: str(len(text))}):
        response = await client.post(
            INFER, content=compress(text), headers={"content-encoding": coding, **headers}
        )
        assert outputs(response) == expected


@pytest.mark.usefixtures("other_tasks")
async def test_models_of_other_tasks_are_run_too(client: httpx.AsyncClient) -> None:
    z = np.random.default_rng(0).normal(size=(2, LATENT)).astype(np.float32)
    sent = [
        {"name": "label", "shape": [2], "datatype": "INT64", "data": [3, 4]},
        {"name": "z", "shape": [2, LATENT], "datatype": "FP32", "data": z.ravel().tolist()},
    ]
    generated = await client.post("/v2/models/ramp/infer", json={"inputs": sent})
    decoded = await client.post(
        "/decode?model=ramp&label=3,4",
        content=z.tobytes(),
        headers={"content-type": OCTETS, "accept": OCTETS},
    )
    (images,) = outputs(generated).values()
    assert bytes(images) == decoded.content
    described = (await client.get("/v2/models/ramp-encoder")).json()
    assert [output["name"] for output in described["outputs"]] == ["mean", "opposite"]


@pytest.mark.parametrize("determinism", ["generation", "all"])
@pytest.mark.parametrize("is_bare", [False, True])
async def test_a_model_of_no_other_task_is_run(tmp_path: Path, determinism: str, is_bare: bool) -> None:
    folder = add_words(tmp_path)
    if is_bare:
        (folder / MANIFEST_FILE).unlink()
    limits = settings(tmp_path).model_copy(update={"determinism": determinism, "default_classifier": None})
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    words, numbers = np.array([[0, 7, 1, 2], [3, 3, 3, 3]]), np.array([[0, 1], [2, 4]], np.float32)
    sent = [
        {"name": "words", "shape": [2, 4], "datatype": "INT64", "data": words.tolist()},
        {"name": "label", "shape": [2, 2], "datatype": "FP32", "data": numbers.tolist()},
    ]
    asked = {"inputs": sent, "parameters": {"binary_data_output": True}}
    app = create_app(predictor, limits, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post("/v2/models/words/infer", json=asked)
        listed = (await client.get("/models")).json()["models"]
        refused = await client.post("/classify?model=words", content=b"1", headers={"content-type": OCTETS})
    await predictor.close()
    seen = np.frombuffer(answer.content[int(answer.headers[INFERENCE_HEADER.name]) :], np.float32)
    with np.errstate(divide="ignore"):
        expected = np.concatenate([VECTORS_OF_WORDS[words].ravel(), np.log(numbers).ravel()])
    np.testing.assert_allclose(seen, expected)
    assert [each["task"] for each in listed] == ["inference"]
    assert refused.json()["error"] == "model words is for inference, expected one for classification"


async def test_a_value_that_the_graph_refuses_fails_its_own_request(tmp_path: Path) -> None:
    add_words(tmp_path)
    limits, metrics = settings(tmp_path).model_copy(update={"default_classifier": None}), Metrics()
    predictor = LocalPredictor(limits, metrics)
    await predictor.start()
    words = [0, 1, 99, 2, 3]  # the table has 8
    bodies = [words_body([word]) | {"outputs": [{"name": "vectors"}]} for word in words]
    app = create_app(predictor, limits, Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answers = await asyncio.gather(*(client.post("/v2/models/words/infer", json=body) for body in bodies))
    await predictor.close()
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200, 200]
    assert "the model failed on the request's rows" in answers[2].json()["error"]
    for word, answer in zip(words, answers, strict=True):
        if word != 99:
            assert outputs(answer)["vectors"] == VECTORS_OF_WORDS[[word] * 4].ravel().tolist()
    labels = {"model": "words", "version": "1"}
    assert metrics.registry.get_sample_value("inkserve_batch_failures_total", labels) == 1
    assert metrics.registry.get_sample_value("inkserve_rows_total", labels) == len(words)


async def test_a_version_may_be_named(client: httpx.AsyncClient) -> None:
    response = await client.post("/v2/models/another/versions/3/infer", json=body())
    assert response.json()["model_version"] == "3"
    missing = await client.post("/v2/models/another/versions/1/infer", json=body())
    assert missing.status_code == 404
    malformed = await client.post("/v2/models/another/versions/latest/infer", json=body())
    assert malformed.status_code == 400
    assert "version is 'latest'" in malformed.json()["error"]


async def test_the_parameters_set_deadline_and_priority(client: httpx.AsyncClient, noted: Noted) -> None:
    longest = 30.0
    for parameters, headers, seconds, priority in (
        ({}, {}, longest, "normal"),
        ({"timeout": 2_000_000, "priority": 2}, {}, 2.0, "low"),
        ({"timeout": 2_000_000}, {"inkserve-timeout": "1"}, 1.0, "normal"),
        ({"timeout": 0, "priority": 0}, {"inkserve-timeout": "3", "inkserve-priority": "low"}, 3.0, "low"),
        ({"priority": 1}, {"inkserve-priority": "low"}, longest, "normal"),
        ({"timeout": 10**15}, {}, longest, "normal"),
    ):
        outputs(await client.post(INFER, json=body(parameters=parameters), headers=headers))
        seen = noted.requests.pop()
        assert seen.priority == priority
        assert seen.deadline - time.monotonic() == pytest.approx(seconds, abs=0.9)


async def test_a_deadline_that_has_passed_is_504(client: httpx.AsyncClient) -> None:
    response = await client.post(INFER, json=body(parameters={"timeout": 1}))
    assert response.status_code == 504
    assert "deadline" in response.json()["error"]


async def test_requests_are_counted_by_route_and_model(client: httpx.AsyncClient, metrics: Metrics) -> None:
    await client.post(INFER, json=body())
    await client.post("/v2/models/another/versions/3/infer", json=body())
    await client.post("/v2/models/none/infer", json=body())
    seen = {
        (sample.labels["route"], sample.labels["model"], sample.labels["status"])
        for family in metrics.requests.collect()
        for sample in family.samples
        if sample.name == "inkserve_requests_total"
    }
    route = "/v2/models/{name}/infer"
    assert seen == {(route, "first-pixel", "200"), (route, "another", "200"), (route, "", "404")}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("GET", "/v2/models/ramp/versions/9/config", 404),
        ("GET", "/v2/models/ramp/versions/x", 400),
        ("GET", "/v2/models/none/stats", 404),
        ("GET", "/v2/models/ramp/versions/9/stats", 404),
        ("POST", "/v2/repository/models/ramp/load", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("POST", "/v2/trace/setting", 404),
        ("GET", INFER, 405),
        ("POST", INFER, 400),
    ],
)
async def test_every_error_is_the_text_that_clients_read(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    (text,) = response.json().values()
    assert [*response.json()] == ["error"]
    assert isinstance(text, str)


async def test_a_malformed_header_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post(INFER, content=RAW, headers={INFERENCE_HEADER.name: "-1"})
    assert response.status_code == 400
    assert "Inference-Header-Content-Length is '-1', expected a number" in response.json()["error"]


async def test_the_metadata_describes_the_server_and_its_tensors(client: httpx.AsyncClient) -> None:
    for path in ("/v2", "/v2/"):
        server = await client.get(path)
        assert (server.status_code, server.json()["name"]) == (200, "inkserve")
    model = (await client.get("/v2/models/first-pixel")).json()
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert model["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
    assert model["versions"] == ["1"]
    config = (await client.get("/v2/models/first-pixel/config")).json()
    assert config["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": [28, 28]}]
    assert config["max_batch_size"] == 40
    assert config["dynamic_batching"]["preferred_batch_size"][-1] == 8
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["response_cache"] == {"enable": False}


async def test_the_index_says_what_cannot_be_served_and_why(
    client: httpx.AsyncClient, predictor: LocalPredictor, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "7"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no graph")
    await predictor.reload()
    ready = {(name, "READY", "") for name in ("another", "first-pixel", "ramp")}
    for sent, expected in ((None, {"broken"}), ({"ready": True}, set()), ({"ready": False}, {"broken"})):
        listed = (await client.post("/v2/repository/index", json=sent)).json()
        assert {(each["name"], each["state"], each["reason"]) for each in listed} >= ready
        unready = [each for each in listed if each["state"] == "UNAVAILABLE"]
        assert {each["name"] for each in unready} == expected
        for each in unready:
            assert (each["version"], "broken" in each["reason"]) == ("7", True)
