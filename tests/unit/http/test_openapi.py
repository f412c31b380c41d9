"""The OpenAPI description: valid, and true of what the service answers, on the fast path and through ASGI."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from service.content.npy import npy_from_array
from service.content.picture_kinds import MEDIA_TYPES
from service.errors import (
    BuffersFull,
    DeadlineExceeded,
    DeadlineUnreachable,
    EngineError,
    ModelNotReady,
    QueueFull,
    ShuttingDown,
    Unavailable,
)
from service.http import headers
from service.http.api_keys import ApiKeys
from service.http.app import create_app
from service.http.dispatch import Dispatch
from service.http.routes import classify, examples, explain, generate, interpolate, latents, search
from service.http.server import Server
from service.http.types import NPY, Receive, Scope, Send
from service.observability import protobuf_exposition
from service.observability.metrics import Metrics
from service.observability.request_ids import REQUEST_ID
from service.serving.local import LocalPredictor
from service.settings import Settings
from tests.support.http import OCTETS, RAW, image, png, settings
from tests.support.live import Response, connected
from tests.support.models import LATENT
from tests.support.openapi import Documented
from tests.support.pictures import FORMATS, encoded, seven

KEY = "a-key-of-the-tests-0123"
ADMIN_KEY = "an-admin-key-of-the-tests"
OTHER_KEY = "an-infer-key-of-the-tests"
KEYS = f"{KEY}\nadmin:admin:{ADMIN_KEY}\nshop:infer:{OTHER_KEY}\n"

pytestmark = pytest.mark.usefixtures("other_tasks")


class Faulty:
    """A part of the service that works, or raises what it is told to. faults: by the method's name."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.faults: dict[str, Exception] = {}

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise self.faults[name]

        return fail if name in self.faults else getattr(self._inner, name)


class Ask(NamedTuple):
    """A request, and what fails while it is served. method: another than the operation's."""

    body: bytes = b""
    kind: str | None = None
    query: str = ""
    accept: str | None = None
    method: str | None = None
    key: str | None = KEY
    path: str | None = None
    if_none_match: str | None = None
    encoding: str | None = None
    faults: Mapping[str, Exception] = {}


JSON = "application/json"
BUG = RuntimeError("a bug")
NO_ENGINE = ModelNotReady("the engine is not connected yet")
LATENTS = np.zeros((1, LATENT), np.float32)
Z = LATENTS.tobytes()
RAW_BODY: dict[str, Any] = {"body": RAW, "kind": OCTETS}
SHED = (QueueFull("the queue is full"), DeadlineUnreachable("too much work"), BuffersFull("too many bytes"))
UNAVAILABLE = (ModelNotReady("it is loading"), ShuttingDown("it stops"), Unavailable("no engine"))


def failing(query: str = "", **request: Any) -> dict[int, list[Ask]]:
    """Requests to an inference route that fail whatever the body. query: without which they would anyway."""
    request = {**request, "query": query}
    return {
        401: [Ask(**request, key=None), Ask(**request, key="not-one-of-the-keys")],
        403: [Ask(**request, key=ADMIN_KEY)],
        404: [Ask(**request | {"query": f"{query}&{more}"}) for more in ("model=none", "version=9")],
        405: [Ask(**request, method="DELETE"), Ask(**request, method="PUT")],
        406: [Ask(**request, accept="text/html")],
        500: [Ask(**request, faults={"submit": fault}) for fault in (EngineError("it failed"), BUG)],
        429: [Ask(**request, faults={"submit": fault}) for fault in SHED],
        503: [Ask(**request, faults={"submit": fault}) for fault in UNAVAILABLE],
        504: [Ask(**request, faults={"submit": DeadlineExceeded("too late")})],
    }


def accepting(kinds: tuple[str, ...], **request: Any) -> list[Ask]:
    return [Ask(**request, accept=kind) for kind in kinds]


def tensors(rows: int, **members: object) -> bytes:
    """A body of the Open Inference Protocol for the classifiers of the tests."""
    pixels = [image(7).tolist()] * rows
    sent = {"name": "images", "shape": [rows, 28, 28], "datatype": "UINT8", "data": pixels}
    return json.dumps({"inputs": [sent], **members}).encode()


def infer(path: str, absent: Sequence[str]) -> dict[int, list[Ask]]:
    """Requests to a route of the Open Inference Protocol. absent: such paths without a model."""
    one: dict[str, Any] = {"body": tensors(1), "kind": JSON, "path": path}
    statuses = failing(**one)
    del statuses[406]  # the request's parameters choose the format
    return statuses | {
        200: [Ask(**one), Ask(tensors(1, parameters={"binary_data_output": True}), path=path)],
        400: [Ask(body, path=path) for body in (b"", b"{", b"{}", tensors(1, id=1), tensors(1, outputs=7))],
        404: [Ask(**one | {"path": each}) for each in absent],
        413: [Ask(tensors(41), path=path), Ask(bytes(70_000), path=path)],
        415: [Ask(**one, encoding="br")],
    }


def showing(path: str, absent: Sequence[str] = (), wrong: Sequence[str] = ()) -> dict[int, list[Ask]]:
    """Requests for something of a model. absent, wrong: such paths without a model, and malformed ones."""
    statuses = {
        200: [Ask(path=path)],
        401: [Ask(path=path, key=None)],
        403: [Ask(path=path, key=ADMIN_KEY)],
        404: [Ask(path=each) for each in absent],
        405: [Ask(path=path, method="DELETE")],
        500: [Ask(path=path, faults={"models": BUG})],
        503: [Ask(path=path, faults={"models": NO_ENGINE})],
    }
    return statuses | ({400: [Ask(path=each) for each in wrong]} if wrong else {})


OF_A_MODEL = ("", "/config", "/ready", "/stats")
"""What the Open Inference Protocol shows of a model."""

ASKED: dict[tuple[str, str], dict[int, list[Ask]]] = {
    ("POST", "/classify"): failing(**RAW_BODY)
    | {
        200: [
            *accepting(classify.OFFERED, **RAW_BODY),
            Ask(png(7), "image/png"),
            Ask(json.dumps(examples.classify_body()).encode(), JSON),
        ],
        400: [Ask(RAW[:-1], OCTETS), Ask(RAW, OCTETS, "topk=1"), Ask(b"{", JSON)],
        413: [Ask(RAW * 41, OCTETS), Ask(bytes(70_000), OCTETS)],
        415: [Ask(RAW, "text/plain")],
    },
    ("GET", "/generate"): failing()
    | {
        200: [*accepting(generate.OFFERED), *accepting(generate.OFFERED, query="label=7&count=3")],
        304: [Ask(query="seed=1", if_none_match="*"), Ask(query="seed=1&model=ramp", if_none_match='"x", *')],
        400: [Ask(query="count=0"), Ask(query="label=eleven"), Ask(query="label=1&digit=1")],
        413: [Ask(query="count=41")],
        415: [Ask(b"x", "text/plain")],
    },
    ("POST", "/generate"): failing()
    | {
        200: [*accepting(generate.OFFERED), Ask(b'{"label":7}', JSON), Ask(bytes(24), OCTETS)],
        400: [Ask(b"{", JSON), Ask(b'{"latents":[1]}', JSON), Ask(b"x", OCTETS)],
        413: [Ask(b'{"count":41}', JSON), Ask(bytes(24 * 41), OCTETS)],
        415: [Ask(b"x", "text/plain")],
    },
    ("GET", "/search"): failing(query="prompt=7")
    | {
        200: [*accepting(search.OFFERED, query="prompt=7t"), Ask(query="prompt=7&count=3")],
        400: [Ask(), Ask(query="prompt=cat"), Ask(query="prompt=7&count=0")],
    },
    ("POST", "/search"): failing(**RAW_BODY)
    | {
        200: [Ask(RAW, OCTETS), Ask(png(7), "image/png", "top_k=270")],
        400: [Ask(RAW[:-1], OCTETS), Ask(RAW, OCTETS, "top_k=271"), Ask(b"{", JSON)],
        413: [Ask(RAW * 41, OCTETS), Ask(bytes(70_000), OCTETS)],
        415: [Ask(RAW, "text/plain")],
    },
    ("POST", "/encode"): failing(**RAW_BODY)
    | {
        200: [*accepting(latents.ENCODE_OFFERED, **RAW_BODY), Ask(png(7), "image/png", "label=3")],
        400: [Ask(RAW[:-1], OCTETS), Ask(RAW, OCTETS, "label=1,2"), Ask(RAW, OCTETS, "label=x")],
        413: [Ask(RAW * 41, OCTETS), Ask(bytes(70_000), OCTETS)],
        415: [Ask(RAW, "text/plain")],
    },
    ("POST", "/decode"): failing(body=Z, kind=OCTETS)
    | {
        200: [*accepting(latents.IMAGES_OFFERED, body=Z, kind=OCTETS), Ask(npy_from_array(LATENTS), NPY)],
        400: [Ask(Z[:-1], OCTETS), Ask(b"x", NPY), Ask(b'{"z":[1]}', JSON), Ask(Z, OCTETS, "label=x")],
        413: [Ask(Z * 41, OCTETS), Ask(bytes(70_000), OCTETS)],
        415: [Ask(Z, "text/plain")],
    },
    ("POST", "/reconstruct"): failing(**RAW_BODY)
    | {
        200: [*accepting(latents.IMAGES_OFFERED, **RAW_BODY), Ask(png(7), "image/png", "label=3")],
        400: [Ask(RAW[:-1], OCTETS), Ask(RAW, OCTETS, "label=1,2"), Ask(RAW, OCTETS, "label=x")],
        413: [Ask(RAW * 41, OCTETS), Ask(bytes(70_000), OCTETS)],
        415: [Ask(RAW, "text/plain")],
    },
    ("GET", "/interpolate"): failing()
    | {
        200: accepting(interpolate.OFFERED, query="from=3&to=8"),
        304: [Ask(query="seed=1", if_none_match="*")],
        400: [Ask(query="steps=1"), Ask(query="from=x"), Ask(query="method=round"), Ask(query="seed=-1")],
    },
    ("POST", "/explain"): failing(**RAW_BODY)
    | {
        200: [
            *accepting(explain.OFFERED, **RAW_BODY),
            *accepting(explain.OFFERED, **RAW_BODY, query="method=lime&samples=9&seed=3&target=4"),
            Ask(png(7), "image/png", "patch=28&show_overlay=true"),
            Ask(RAW * 2, OCTETS, "method=integrated_gradients&steps=5"),
        ],
        400: [Ask(RAW, OCTETS, each) for each in ("method=shap", "target=ten", "patch=29", "top_k=1")],
        413: [
            Ask(RAW * 17, OCTETS),
            Ask(RAW * 2, OCTETS, "method=lime&samples=4095"),
            Ask(bytes(70_000), OCTETS),
        ],
        415: [Ask(RAW, "text/plain")],
    },
    ("POST", "/v2/models/{name}/infer"): infer("/v2/models/another/infer", ["/v2/models/none/infer"]),
    ("POST", "/v2/models/{name}/versions/{version}/infer"): infer(
        "/v2/models/another/versions/3/infer", ["/v2/models/another/versions/9/infer"]
    ),
    ("GET", "/v2"): {
        200: [Ask()],
        401: [Ask(key=None)],
        403: [Ask(key=ADMIN_KEY)],
        405: [Ask(method="POST")],
    },
    **{
        ("GET", "/v2/models/{name}" + each): showing(f"/v2/models/ramp{each}", [f"/v2/models/none{each}"])
        for each in OF_A_MODEL
    },
    **{
        ("GET", "/v2/models/{name}/versions/{version}" + each): showing(
            f"/v2/models/another/versions/3{each}",
            [f"/v2/models/another/versions/9{each}"],
            [f"/v2/models/another/versions/0{each}", f"/v2/models/another/versions/x{each}"],
        )
        for each in OF_A_MODEL
    },
    ("GET", "/v2/models/stats"): {
        200: [Ask()],
        401: [Ask(key=None)],
        403: [Ask(key=ADMIN_KEY)],
        405: [Ask(method="POST")],
        500: [Ask(faults={"models": BUG}), Ask(faults={"gather": BUG})],
        503: [Ask(faults={"models": NO_ENGINE}), Ask(faults={"gather": NO_ENGINE})],
    },
    ("POST", "/v2/repository/index"): {
        200: [Ask(key=ADMIN_KEY), Ask(b'{"ready":true}', JSON, key=ADMIN_KEY)],
        400: [Ask(b'{"ready":7}', JSON, key=ADMIN_KEY), Ask(b"{", JSON, key=ADMIN_KEY)],
        401: [Ask(key=None)],
        403: [Ask(key=OTHER_KEY)],
        405: [Ask(method="GET")],
        500: [Ask(key=ADMIN_KEY, faults={"models": BUG})],
        503: [Ask(key=ADMIN_KEY, faults={"models": NO_ENGINE})],
    },
    ("GET", "/v2/health/live"): {200: [Ask(), Ask(key=None)], 405: [Ask(method="POST")]},
    ("GET", "/v2/health/ready"): {
        200: [Ask(), Ask(key=None)],
        405: [Ask(method="POST")],
        500: [Ask(faults={"ready": BUG})],
        503: [Ask(faults={"ready": ShuttingDown("it stops")})],
    },
    ("GET", "/metrics"): {
        200: [
            *(Ask(), Ask(key=None), Ask(accept="application/openmetrics-text; version=1.0.0")),
            Ask(accept=protobuf_exposition.CONTENT_TYPE),
        ],
        405: [Ask(method="POST")],
        500: [Ask(faults={"gather": BUG})],
    },
    ("GET", "/models"): {
        200: [Ask()],
        401: [Ask(key=None)],
        403: [Ask(key=ADMIN_KEY)],
        405: [Ask(method="POST")],
        500: [Ask(faults={"models": BUG})],
        503: [Ask(faults={"models": NO_ENGINE})],
    },
    ("GET", "/models/{name}"): {
        200: [Ask(path="/models/ramp"), Ask(path="/models/another", query="version=3")],
        400: [Ask(path="/models/ramp", query="version=0")],
        401: [Ask(path="/models/ramp", key=None)],
        403: [Ask(path="/models/ramp", key=ADMIN_KEY)],
        404: [Ask(path="/models/none"), Ask(path="/models/ramp", query="version=9")],
        405: [Ask(path="/models/ramp", method="DELETE")],
        500: [Ask(path="/models/ramp", faults={"models": BUG})],
        503: [Ask(path="/models/ramp", faults={"models": NO_ENGINE})],
    },
    ("GET", "/models/{name}/graph"): {
        200: [Ask(path="/models/ramp/graph"), Ask(path="/models/another/graph", query="version=3")],
        400: [Ask(path="/models/ramp/graph", query="version=0")],
        401: [Ask(path="/models/ramp/graph", key=None)],
        403: [Ask(path="/models/ramp/graph", key=ADMIN_KEY)],
        404: [Ask(path="/models/none/graph"), Ask(path="/models/ramp/graph", query="version=9")],
        405: [Ask(path="/models/ramp/graph", method="DELETE")],
        500: [Ask(path="/models/ramp/graph", faults={"models": BUG})],
        503: [Ask(path="/models/ramp/graph", faults={"models": NO_ENGINE})],
    },
}
"""For every documented status of every operation, requests that get it."""


class Spy:
    """An application that notes which requests came through ASGI."""

    def __init__(self, app: Dispatch) -> None:
        self._app = app
        self.fast_path = app.fast_path
        self.lifecycle = app.lifecycle
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        await self._app(scope, receive, send)


class Running(NamedTuple):
    """A service on a real socket, in this process, with API keys."""

    port: int
    predictor: Faulty
    gatherer: Faulty
    spy: Spy

    async def ask(self, method: str, path: str, ask: Ask, *, chunked: bool) -> Response:
        """Send a request on a connection of its own. chunked: so that it takes the ASGI path."""
        lines = {"host": "test", "content-type": ask.kind, "accept": ask.accept}
        lines |= {"if-none-match": ask.if_none_match, "content-encoding": ask.encoding}
        lines |= {"authorization": None if ask.key is None else f"Bearer {ask.key}"}
        body = ask.body
        if chunked:
            lines |= {"transfer-encoding": "chunked"}
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        else:
            lines |= {"content-length": str(len(body))}
        head = [f"{ask.method or method} {ask.path or path}?{ask.query} HTTP/1.1"]
        head += [f"{name}: {value}" for name, value in lines.items() if value is not None]
        self.predictor.faults = self.gatherer.faults = dict(ask.faults)
        async with connected(self.port) as connection:
            connection.writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
            response = await connection.receive()
        self.predictor.faults = self.gatherer.faults = {}
        return response


class Gatherer:
    """Gathers the metrics of a service that is one process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def gather(self) -> CollectorRegistry:
        return self._metrics.registry


@asynccontextmanager
async def running(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "keys").write_text(KEYS)
    limits = settings(tmp_path).model_copy(update={"port": 0})
    metrics, faulty = Metrics(), Faulty(predictor)
    gatherer = Faulty(Gatherer(metrics))
    keys = ApiKeys.read(tmp_path / "keys")
    app = create_app(faulty, limits, metrics, lambda: gatherer.gather(), keys)
    spy = Spy(app)
    ports: asyncio.Queue[int] = asyncio.Queue()
    server = Server(spy, limits, lambda: None, lambda bound: ports.put_nowait(bound.getsockname()[1]))
    serving = asyncio.ensure_future(server.serve())
    try:
        yield Running(await ports.get(), faulty, gatherer, spy)
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def asking(
    predictor: LocalPredictor, limits: Settings, keys: ApiKeys | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(predictor, limits, Metrics(), keys=keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
async def documented(predictor: LocalPredictor, tmp_path: Path) -> Documented:
    async with asking(predictor, settings(tmp_path)) as client:
        return Documented((await client.get("/openapi.json")).json())


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
@pytest.mark.parametrize(("method", "path"), ASKED)
async def test_every_documented_status_is_answered_as_documented(
    predictor: LocalPredictor, tmp_path: Path, method: str, path: str, chunked: bool
) -> None:
    async with running(predictor, tmp_path) as service:
        document = await service.ask("GET", "/openapi.json", Ask(), chunked=False)
        documented = Documented(json.loads(document.body))
        operation = documented.document["paths"][path][method.lower()]
        assert {str(status) for status in ASKED[method, path]} == operation["responses"].keys()
        for status, asks in ASKED[method, path].items():
            kinds = set()
            for ask in asks:
                response = await service.ask(method, path, ask, chunked=chunked)
                assert response.status == status, (ask, response.body[:200])
                asked = ask.method or method, ask.path or path
                documented.check(*asked, response.status, response.headers, response.body)
                kinds.add(response.headers.get("content-type", "").partition(";")[0])
            assert kinds - {""} == operation["responses"][str(status)].get("content", {}).keys()


@pytest.mark.slow
async def test_the_fast_path_is_among_what_is_asked(predictor: LocalPredictor, tmp_path: Path) -> None:
    async with running(predictor, tmp_path) as service:
        for chunked, expected in ((False, []), (True, ["/classify"])):
            service.spy.paths.clear()
            await service.ask("POST", "/classify", Ask(RAW, OCTETS), chunked=chunked)
            assert service.spy.paths == expected


@pytest.mark.slow
async def test_the_document_is_served_before_the_engine_is_connected(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    async with running(predictor, tmp_path) as service:
        ask = Ask(faults={"models": NO_ENGINE})
        before = await service.ask("GET", "/openapi.json", ask, chunked=False)
        after = await service.ask("GET", "/openapi.json", Ask(), chunked=False)
    assert before.status == after.status == 200
    assert b'"example":"another"' not in before.body
    assert b'"example":"another"' in after.body  # a model's name


def test_every_operation_is_asked(documented: Documented) -> None:
    assert {(method, path) for method, path, _ in documented.operations()} == ASKED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["off", "console"])
@pytest.mark.parametrize("with_keys", [False, True])
async def test_the_document_is_valid_openapi(
    predictor: LocalPredictor, tmp_path: Path, exporter: str, with_keys: bool
) -> None:
    (tmp_path / "keys").write_text(KEYS)
    keys = ApiKeys.read(tmp_path / "keys") if with_keys else None
    limits = settings(tmp_path).model_copy(update={"tracing": exporter})
    async with asking(predictor, limits, keys) as client:
        document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()
    for _, _, operation in Documented(document).operations():
        sent = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
        assert ("Traceparent" in sent) == (exporter != "off")
        for response in operation["responses"].values():
            assert ("Traceresponse" in response["headers"]) == (exporter != "off")
    ids = [operation["operationId"] for _, _, operation in Documented(document).operations()]
    assert len({*ids}) == len(ids)


async def test_only_paths_that_need_a_key_document_401(predictor: LocalPredictor, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    async with asking(predictor, settings(tmp_path), ApiKeys.read(tmp_path / "keys")) as client:
        document = (await client.get("/openapi.json")).json()
        for method, path, operation in Documented(document).operations():
            seen = await client.request(method, path)
            assert (seen.status_code == 401) == ("401" in operation["responses"]), path
            assert (seen.status_code == 401) == ("security" not in operation), path
    assert document["security"] == [{"key": []}]


def test_no_status_is_documented_that_is_never_sent(documented: Documented) -> None:
    for method, path, operation in documented.operations():
        assert "422" not in operation["responses"], (method, path)
        assert "401" not in operation["responses"], (method, path)  # no keys are in use
    assert "HTTPValidationError" not in documented.document["components"]["schemas"]


CONTENT = {kind: encoded(seven(), name) for kind, name in MEDIA_TYPES.items() if name in FORMATS}
"""Files that a reader of /docs would choose."""


def filled_in(operation: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """The request that /docs makes of its examples; where it asks for a file, one is chosen."""
    values = {each["name"]: each["example"] for each in operation["parameters"] if "example" in each}
    places = {each["name"]: each["in"] for each in operation["parameters"]}
    request: dict[str, Any] = {"params": {n: v for n, v in values.items() if places[n] == "query"}}
    request["path"] = {n: v for n, v in values.items() if places[n] == "path"}
    request["headers"] = {} if kind is None else {"content-type": kind}
    if kind == "application/json":
        (example,) = operation["requestBody"]["content"][kind]["examples"].values()
        request["content"] = json.dumps(example["value"])
    elif kind == "multipart/form-data":
        request["headers"] = {}
        request["files"] = [("images", ("7.png", png(7)))]
    elif kind is not None:
        rows = {"generate_from_body": b"", "decode": Z}.get(operation["operationId"], RAW)
        if kind == NPY:
            rows = npy_from_array(LATENTS if operation["operationId"] == "decode" else image(7))
        request["content"] = CONTENT.get(kind, rows)
    return request


@pytest.mark.slow
async def test_what_the_page_fills_in_gets_200(
    predictor: LocalPredictor, tmp_path: Path, documented: Documented
) -> None:
    async with asking(predictor, settings(tmp_path)) as client:
        for method, path, operation in documented.operations():
            kinds = operation.get("requestBody", {"content": [None]})["content"]
            for kind in kinds:
                request = filled_in(operation, kind)
                response = await client.request(method, path.format(**request.pop("path")), **request)
                assert response.status_code == 200, (method, path, kind, response.text)


async def test_the_examples_fit_the_models_and_the_limits(
    add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path
) -> None:
    """A service without any model has none to name; with few rows per request it asks for fewer images."""
    limits = settings(tmp_path).model_copy(update={"max_request_rows": 4, "default_classifier": None})
    add_classifier(labels=tuple("abcdefghij"))
    predictor = LocalPredictor(limits, Metrics())
    await predictor.start()
    async with asking(predictor, limits) as client:
        before = Documented((await client.get("/openapi.json")).json())
        fields = examples.generate_fields(predictor.models(), limits)
        assert fields == {"count": 4, "label": "mixed", "seed": 1}
        add_generator()
        await predictor.reload()
        after = Documented((await client.get("/openapi.json")).json())
    await predictor.close()
    assert before.document != after.document
    get = after.document["paths"]["/generate"]["get"]
    assert {each["name"]: each["example"] for each in get["parameters"] if "example" in each} == {
        "count": 4,
        "label": "7",
        "seed": 1,
    }


async def test_post_has_no_example_in_the_query(
    documented: Documented,
) -> None:
    post = documented.document["paths"]["/generate"]["post"]
    assert not [each for each in post["parameters"] if "example" in each]


@pytest.mark.parametrize(
    ("path", "method", "names", "accepted", "offered"),
    [
        ("/classify", "post", classify.QUERY, classify.ACCEPTED, classify.OFFERED),
        ("/generate", "post", generate.QUERY, generate.ACCEPTED, generate.OFFERED),
    ],
)
async def test_queries_and_media_types_are_those_that_are_read(
    documented: Documented,
    path: str,
    method: str,
    names: tuple[str, ...],
    accepted: tuple[str, ...],
    offered: tuple[str, ...],
) -> None:
    operation = documented.document["paths"][path][method]
    query = [each["name"] for each in operation["parameters"] if each["in"] == "query"]
    assert query == ([*names] if path == "/classify" else [])  # of /generate the fields are in the body
    assert operation["requestBody"]["content"].keys() == {*accepted}
    assert operation["responses"]["200"]["content"].keys() == {*offered}


@pytest.mark.parametrize(("path", "method"), [("/classify", "post"), ("/generate", "get")])
async def test_largest_documented_number_is_the_largest_accepted(
    predictor: LocalPredictor, tmp_path: Path, documented: Documented, path: str, method: str
) -> None:
    parameters = documented.document["paths"][path][method]["parameters"]
    query = {each["name"]: each["schema"] for each in parameters if each["in"] == "query"}
    numbers = {name: schema["maximum"] for name, schema in query.items() if "maximum" in schema}
    assert (
        numbers.keys() == {"/classify": {"version", "top_k"}, "/generate": {"version", "seed", "count"}}[path]
    )
    content = png(7) if method == "post" else None
    async with asking(predictor, settings(tmp_path)) as client:
        for name, most in numbers.items():
            for value, statuses in ((most, {200, 404}), (most + 1, {400, 413})):
                answer = await client.request(method, path, params={name: value}, content=content)
                assert answer.status_code in statuses, (name, value, answer.text)


async def test_form_with_another_field_than_documented_is_rejected(
    predictor: LocalPredictor, tmp_path: Path, documented: Documented
) -> None:
    content = documented.document["paths"]["/classify"]["post"]["requestBody"]["content"]
    schema = content["multipart/form-data"]["schema"]
    assert (list(schema["properties"]), schema["additionalProperties"]) == (["images"], False)
    async with asking(predictor, settings(tmp_path)) as client:
        files = {"images": ("seven.png", png(7), "image/png")}
        assert (await client.post("/classify", files=files)).status_code == 200
        assert (await client.post("/classify", files=files, data={"more": "1"})).status_code == 400


def test_deprecated_names_are_marked(documented: Documented) -> None:
    schemas = documented.document["components"]["schemas"]
    for name in ("GenerateRequest", "GeneratedImage"):
        fields = schemas[name]["properties"]
        assert [field for field in fields if fields[field].get("deprecated")] == ["digit"]


def test_the_example_is_a_png() -> None:
    assert base64.b64decode(examples.SEVEN).startswith(b"\x89PNG")


def test_headers_are_sent_under_their_documented_names() -> None:
    assert headers.REQUEST_ID.wire == REQUEST_ID
