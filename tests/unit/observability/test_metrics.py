"""What the service counts, read as Prometheus would read it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.http.app import create_app
from service.http.dispatch import Dispatch
from service.observability.metrics import LATENCY_OBJECTIVE_SECONDS, Metrics, Rejection
from service.serving.local import LocalPredictor
from service.settings import Settings
from service.split.engine_client import EngineClient

RAW = bytes(784)
PNG = (Path(__file__).parents[2] / "digits" / "7.png").read_bytes()
MODEL = "first-pixel"
DOCUMENT = Path(__file__).parents[3] / "docs" / "observability.md"


@pytest.fixture
def models_dir(add_classifier: Callable[..., Path], tmp_path: Path) -> Path:
    add_classifier(MODEL)
    return tmp_path


@asynccontextmanager
async def service(models_dir: Path, **values: Any) -> AsyncIterator[tuple[Dispatch, LocalPredictor, Metrics]]:
    settings = Settings(models_dir=models_dir, max_batch_size=8, **values)
    metrics = Metrics()
    predictor = LocalPredictor(settings, metrics)
    await predictor.start()
    try:
        yield create_app(predictor, settings, metrics), predictor, metrics
    finally:
        await predictor.close()


def post(app: Dispatch, path: str = "/classify") -> "asyncio.Task[httpx.Response]":
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    return asyncio.ensure_future(client.post(path, content=RAW))


def rejected(metrics: Metrics, reason: str, model: str = MODEL) -> float | None:
    labels = {"model": model, "reason": reason}
    return metrics.registry.get_sample_value("inkserve_rejected_requests_total", labels)


def requests(metrics: Metrics, status: int, model: str = MODEL) -> float | None:
    labels = {"route": "/classify", "model": model, "status": str(status)}
    return metrics.registry.get_sample_value("inkserve_requests_total", labels)


async def test_nothing_rejected_is_a_zero_and_not_a_gap(models_dir: Path) -> None:
    async with service(models_dir) as (_, _, metrics):
        assert rejected(metrics, "queue_full") == rejected(metrics, "client_left") == 0


async def test_a_request_whose_deadline_passes_is_counted_as_such(models_dir: Path) -> None:
    patient = {"max_batch_delay_seconds": 10, "request_timeout_seconds": 0.001}
    async with service(models_dir, **patient) as (app, _, metrics):
        assert (await post(app)).status_code == 504
        assert rejected(metrics, "deadline") == requests(metrics, 504) == 1


async def test_a_request_that_finds_the_queue_full_is_counted_as_such(models_dir: Path) -> None:
    small = {"max_queue_rows": 1, "max_request_rows": 1, "max_batch_delay_seconds": 0.2}
    async with service(models_dir, **small) as (app, _, metrics):
        answers = await asyncio.gather(post(app), post(app), post(app))
        assert sorted(answer.status_code for answer in answers) == [200, 429, 429]
        assert rejected(metrics, "queue_full") == requests(metrics, 429) == 2


async def test_a_request_after_the_end_is_counted_as_such(models_dir: Path) -> None:
    async with service(models_dir) as (app, predictor, metrics):
        await predictor.close()
        assert (await post(app)).status_code == 503
        assert rejected(metrics, "shutting_down") == 1


async def test_a_request_whose_client_leaves_is_counted_as_such(models_dir: Path) -> None:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": RAW}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(_: Any) -> None:
        pytest.fail("nobody is there to be answered")

    scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": []}
    async with service(models_dir, max_batch_delay_seconds=10) as (app, _, metrics):
        await app(scope, receive, send)
        assert rejected(metrics, "client_left") == requests(metrics, 499) == 1


async def test_without_an_engine_no_model_is_named(tmp_path: Path) -> None:
    metrics = Metrics()
    predictor = EngineClient(tmp_path / "nobody.sock")
    app = create_app(predictor, Settings(), metrics)
    assert (await post(app, "/classify?model=users-words")).status_code == 503
    assert rejected(metrics, "not_ready", model="") == 1
    assert metrics.registry.get_sample_value("inkserve_ready") == 0
    await predictor.close()


async def test_an_invalid_request_is_not_counted_as_rejected(models_dir: Path) -> None:
    async with service(models_dir) as (app, _, metrics):
        assert (await post(app, "/classify?version=0")).status_code == 400
        assert total(metrics.registry, "inkserve_rejected_requests_total") == 0


def total(registry: CollectorRegistry, name: str) -> float:
    samples = (sample for family in registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == name)


def test_a_good_request_has_2xx_within_the_objective() -> None:
    metrics = Metrics()
    metrics.requests.of("/classify", MODEL, 200).add(LATENCY_OBJECTIVE_SECONDS)
    metrics.requests.of("/classify", MODEL, 200).add(LATENCY_OBJECTIVE_SECONDS + 0.001)
    metrics.requests.of("/classify", MODEL, 503).add(0.001)
    metrics.requests.of("/metrics", "", 200).add(0.001)
    labels = {"route": "/classify", "model": MODEL}
    assert metrics.registry.get_sample_value("inkserve_good_requests_total", labels) == 1
    assert total(metrics.registry, "inkserve_good_requests_total") == 1


async def test_each_version_has_its_own_batches(
    models_dir: Path, add_classifier: Callable[..., Path]
) -> None:
    add_classifier(MODEL, version=2)
    async with service(models_dir, serve_versions="all") as (app, _, metrics):
        for path in ("/classify?version=1", "/classify", "/classify?version=2"):
            assert (await post(app, path)).status_code == 200

        def runs(name: str, version: str) -> float | None:
            return metrics.registry.get_sample_value(name, {"model": MODEL, "version": version})

        for name in (
            "rows_total",
            "queue_seconds_count",
            "request_rows_count",
            "batch_compute_seconds_count",
        ):
            assert (runs(f"inkserve_{name}", "1"), runs(f"inkserve_{name}", "2")) == (1, 2), name
        assert runs("inkserve_batch_failures_total", "2") == 0


async def test_decoding_and_encoding_are_timed_by_format_and_raw_rows_are_not(models_dir: Path) -> None:
    async with service(models_dir) as (app, _, metrics):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            raw = {"content-type": "application/octet-stream"}
            await client.post("/classify", content=RAW, headers={**raw, "accept": "application/octet-stream"})
            await client.post("/classify", content=RAW, headers=raw)
            await client.post("/classify", json={"images": [[[0] * 28] * 28]})
            await client.post("/classify", json={"images": "none"})
            await client.post("/classify", content=PNG, headers={"content-type": "image/png"})

    def timed(what: str) -> dict[str, float]:
        samples = (sample for family in metrics.registry.collect() for sample in family.samples)
        name = f"inkserve_{what}_seconds_count"
        return {sample.labels["format"]: sample.value for sample in samples if sample.name == name}

    assert timed("decode") == {"json": 2, "picture": 1}
    assert timed("encode") == {"json": 3}


async def test_ready_follows_the_predictor(models_dir: Path) -> None:
    async with service(models_dir) as (_, predictor, metrics):
        assert metrics.registry.get_sample_value("inkserve_ready") == 1
        predictor.stop_being_ready()
        assert metrics.registry.get_sample_value("inkserve_ready") == 0


def test_the_document_names_every_metric_with_its_type() -> None:
    metrics = Metrics()
    metrics.watch_process()
    metrics.watch_ready(lambda: True)
    metrics.watch_connections(lambda: 0, lambda: 0)
    metrics.watch_queues(lambda: 0, lambda: 0)
    metrics.watch_load(lambda: 0)
    families = {family.name: family.type for family in metrics.registry.collect()}
    rows = re.findall(r"^\| `(inkserve_\w+)` \| (\w+) \|", DOCUMENT.read_text(), re.MULTILINE)
    described = {name.removesuffix("_total").removesuffix("_info"): kind for name, kind in rows}
    gpu = {name for name in described if name.startswith("inkserve_gpu_")}
    assert len(gpu) == 3
    own = {name: kind for name, kind in families.items() if name.startswith("inkserve_")}
    assert {name: kind for name, kind in described.items() if name not in gpu} == own


def test_the_document_names_every_reason_of_a_rejection() -> None:
    reasons = re.findall(r"^\| `(\w+)` \| \d{3} \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(reasons) == sorted(get_args(Rejection))
