"""Traces of the real service, as a collector on this machine receives them."""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.__main__ import main
from tests.support.collector import Collector, collecting
from tests.support.live import CALLERS, Service, connected, post_all, serving

RAW = bytes(784)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
PROPFIND = "HTTP /models/{name}"
"""The name of a span whose method is not in RFC 9110."""
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}

if not os.environ.get("CI"):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        yield collector


@pytest.fixture
def models_dir(add_classifier: Callable[..., Path], tmp_path: Path) -> Path:
    add_classifier()
    return tmp_path


@contextmanager
def traced(models_dir: Path, *flags: str) -> Iterator[Service]:
    """A service that traces; when it has stopped, the collector has every span."""
    with serving("--models-dir", str(models_dir), "--tracing", "otlp", *flags) as service:
        yield service
        assert service.stop() == 0


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_a_request_and_its_batch_are_spans_of_the_callers_trace(
    collector: Collector, models_dir: Path, workers: str
) -> None:
    with traced(models_dir, "--workers", workers, "--access-log") as service:
        async with connected(service.port) as connection:
            answer = await connection.ask("POST", "/classify", RAW * 3, SENT)
            asked = {"accept": "application/openmetrics-text"}
            metrics = (await connection.ask("GET", "/metrics", headers=asked)).body.decode()
        assert service.process.stderr is not None
        assert f"trace_id={TRACE}" in service.process.stderr.readline()
    (request,) = collector.named("POST /classify")
    (queue,) = collector.named("queue")
    (compute,) = collector.named("compute")
    (batch,) = collector.named("batch")
    (exemplar,) = re.findall(r'inkserve_request_seconds_bucket.*route="/classify"} \S+ # (\{.*\}) ', metrics)
    assert exemplar == f'{{span_id="{request.id}",trace_id="{TRACE}"}}'
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{request.id}-01"
    assert (request.trace, request.parent) == (TRACE, PARENT)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "server.address": "test",
        "server.port": 80,
        "url.path": "/classify",
        "url.scheme": "http",
    }
    assert {span.parent for span in (queue, compute, batch)} == {request.id}
    assert request.start <= queue.start <= queue.end == compute.start <= compute.end <= request.end
    assert batch.links == [request.id]
    assert batch.attributes == {
        "inkserve.model": "first-pixel",
        "inkserve.rows": 3,
        "inkserve.reason": "idle",
    }
    # Both clocks are read on two sides of a call; how far apart depends on who runs in between.
    assert abs((batch.end - batch.start) - (compute.end - compute.start)) < 1_000
    assert collector.paths == {"/v1/traces"}


async def test_a_batch_links_to_each_of_its_requests(collector: Collector, models_dir: Path) -> None:
    with traced(models_dir, "--max-batch-delay-seconds", "0.5") as service:
        answers = await post_all(service.port, "/classify", [RAW] * CALLERS, {})
    assert {answer.status for answer in answers} == {200}
    requests = {span.id for span in collector.named("POST /classify")}
    linked = [link for batch in collector.named("batch") for link in batch.links]
    assert len(linked) == CALLERS
    assert set(linked) == requests
    assert max(len(batch.links) for batch in collector.named("batch")) > 1


async def test_what_is_not_sampled_leaves_no_span(collector: Collector, models_dir: Path) -> None:
    with traced(models_dir) as service:
        async with connected(service.port) as connection:
            answer = await connection.ask("POST", "/classify", RAW, UNSAMPLED)
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", answer.headers["traceresponse"])
    assert collector.spans == []


async def test_errors_and_paths_of_strangers(
    collector: Collector, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
    with traced(models_dir, "--max-batch-delay-seconds", "5", "--request-timeout-seconds", "0.01") as service:
        async with connected(service.port) as connection:
            assert (await connection.ask("GET", "/.env/secret")).status == 404
            assert (await connection.ask("GET", "/models/first-pixel")).status == 200
            assert (await connection.ask("POST", "/classify", RAW)).status == 504
        async with connected(service.port) as connection:
            assert (await connection.ask("PROPFIND", "/models/a%20b")).status == 405
    assert {span.service for span in collector.spans} == {"digits"}
    failed = {span.name: span.failed for span in collector.spans}
    assert failed == {"GET": False, "GET /models/{name}": False, "POST /classify": True, PROPFIND: False}
    (stranger,), (late,), (unusual,) = map(collector.named, ("GET", "POST /classify", PROPFIND))
    assert stranger.attributes["url.path"] == "/.env/secret"
    assert "http.route" not in stranger.attributes
    assert late.attributes["error.type"] == "DeadlineExceeded"
    assert unusual.attributes["http.request.method"] == "_OTHER"
    assert unusual.attributes["http.request.method_original"] == "PROPFIND"
    assert unusual.attributes["url.path"] == "/models/a%20b"
    assert "error.type" not in unusual.attributes


async def test_a_span_has_the_address_and_scheme_that_the_client_asked_for(
    collector: Collector, models_dir: Path
) -> None:
    """On the fast path and on the other alike, behind a trusted proxy that ends TLS."""
    sent = {"host": "[2001:db8::7]:8443", "x-forwarded-proto": "https"}
    with traced(models_dir, "--trusted-proxies", "127.0.0.1") as service:
        async with connected(service.port) as connection:
            await connection.ask("POST", "/classify", RAW, sent)
            await connection.ask("POST", "/classify?top_k=0", RAW, sent)
            await connection.ask("GET", "/models", headers=sent | {"host": "digits.example.com"})
    seen = [
        (span.attributes["server.address"], span.attributes["server.port"], span.attributes["url.scheme"])
        for span in collector.spans
        if "url.scheme" in span.attributes
    ]
    own = ("2001:db8::7", 8443, "https")
    assert seen == [own, own, ("digits.example.com", 443, "https")]


async def test_the_console_needs_no_collector(models_dir: Path) -> None:
    with serving("--models-dir", str(models_dir), "--tracing", "console") as service:
        async with connected(service.port) as connection:
            await connection.ask("POST", "/classify", RAW, SENT)
        assert service.stop() == 0
        assert service.process.stderr is not None
        assert TRACE in service.process.stderr.read()


def test_without_the_sdk_the_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, models_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "service.observability.tracing", None)
    monkeypatch.setenv("INKSERVE_MODELS_DIR", str(models_dir))
    for module, name in (
        (sys, "stderr"),
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # `main` changes them for its whole process
    try:
        assert main(["--port", "0", "--tracing", "otlp"]) == 1
    finally:
        logging.captureWarnings(False)
    assert "the extra `tracing` is missing" in capfd.readouterr().err
