"""Log lines and request ids, through the real formatters and the real application."""

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.app import create_app
from service.observability.access_log import Access, AccessLog
from service.observability.logs import FIELDS, JsonFormatter, TextFormatter
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings
from tests.support.live import connected, serving
from tests.support.log_stream import logging_to_memory

RAW = bytes(784)
MADE = re.compile(r"[0-9a-f]{32}")


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.getLogger("inkserve").makeRecord("inkserve", logging.INFO, "", 0, message, (), None)
    if fields:
        setattr(made, FIELDS, fields)
    return made


def test_a_json_line_has_its_own_fields() -> None:
    line = json.loads(JsonFormatter().format(record("answered", status=200, request_id="a")))
    assert (line["message"], line["status"], line["request_id"]) == ("answered", 200, "a")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_a_text_line_has_its_own_fields_at_the_end() -> None:
    assert TextFormatter().format(record("answered", status=200)).endswith("INFO    answered status=200")
    assert TextFormatter().format(record("stopped")).endswith("INFO    stopped")


@pytest.fixture
async def predictor(add_classifier: Callable[..., Path], tmp_path: Path) -> AsyncIterator[LocalPredictor]:
    add_classifier()
    predictor = LocalPredictor(Settings(models_dir=tmp_path, max_batch_size=8), Metrics())
    await predictor.start()
    yield predictor
    await predictor.close()


def client_of(predictor: LocalPredictor, access_log: bool) -> httpx.AsyncClient:
    app = create_app(predictor, Settings(access_log=access_log), Metrics())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("path", ["/classify", "/classify?version=0", "/models", "/nothing"])
async def test_a_sent_id_comes_back(predictor: LocalPredictor, path: str) -> None:
    async with client_of(predictor, access_log=False) as client:
        method = "POST" if path.startswith("/classify") else "GET"
        response = await client.request(method, path, content=RAW, headers={"x-request-id": "a-1/2:3"})
        assert response.headers["x-request-id"] == "a-1/2:3"


@pytest.mark.parametrize("sent", ["", "x" * 129, "two words", 'a"b', "h\u00e9"])
async def test_an_id_unfit_for_a_log_is_replaced(predictor: LocalPredictor, sent: str) -> None:
    async with client_of(predictor, access_log=False) as client:
        headers = {b"x-request-id": sent.encode("latin-1")}
        response = await client.post("/classify", content=RAW, headers=headers)
        assert MADE.fullmatch(response.headers["x-request-id"])


async def test_without_an_id_an_answer_has_none_and_an_error_has_one(predictor: LocalPredictor) -> None:
    async with client_of(predictor, access_log=False) as client:
        assert "x-request-id" not in (await client.post("/classify", content=RAW)).headers
        ids = {
            (await client.post("/classify?version=0", content=RAW)).headers["x-request-id"],
            (await client.get("/classify")).headers["x-request-id"],
        }
        assert len(ids) == 2
        assert all(MADE.fullmatch(each) for each in ids)


async def test_an_access_line_has_the_id_that_the_answer_has(
    predictor: LocalPredictor,
) -> None:
    with logging_to_memory() as stream:
        app = create_app(predictor, Settings(access_log=True, log_format="json"), Metrics())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answered = await client.post("/classify?model=first-pixel", content=RAW)
            missing = await client.get("/no%0Athing")
            await asyncio.sleep(0)
    lines = stream.getvalue().splitlines()  # httpx logs too, as plain text
    known, unknown = (json.loads(line) for line in lines if line.startswith("{"))
    assert 0 < known.pop("seconds") < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", known.pop("time"))
    assert known == {
        "level": "info",
        "logger": "inkserve.access",
        "message": "answered",
        "method": "POST",
        "path": "/classify",
        "status": 200,
        "model": "first-pixel",
        "client": "127.0.0.1",
        "request_id": answered.headers["x-request-id"],
    }
    assert (unknown["path"], unknown["status"]) == ("/no%0Athing", 404)
    assert unknown["request_id"] == missing.headers["x-request-id"]


@given(
    path=st.text(max_size=40).map(lambda text: "/" + text.encode("utf-8", "replace").decode()),
    client=st.ip_addresses().map(str),
    status=st.integers(100, 599),
    seconds=st.floats(0, 1e3),
    traceparent=st.none() | st.just(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
    # The file of keys accepts fewer names; a line stays one line with any.
    api_key_name=st.none() | st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace").decode()),
)
def test_an_access_line_is_what_the_formatters_would_write(
    path: str, client: str, status: int, seconds: float, traceparent: bytes | None, api_key_name: str | None
) -> None:
    """`logging` would take 25 us for the same line."""
    fields = {
        "method": "GET",
        "path": quote(path),
        "status": status,
        "seconds": round(seconds, 6),
        "model": "cnn",
        "client": client,
        "request_id": "an-id",
    }
    if api_key_name is not None:
        fields["api_key_name"] = quote(api_key_name)
    if traceparent is not None:
        fields["trace_id"] = "0af7651916cd43dd8448eb211c80319c"
    expected = record("answered", **fields)
    expected.name = "inkserve.access"
    for log_format, formatter in (("json", JsonFormatter()), ("text", TextFormatter())):
        stream = io.StringIO()

        async def log(stream: io.StringIO = stream, log_format: Any = log_format) -> None:
            access_log = AccessLog(stream, log_format)
            access = Access("GET", path, status, seconds, "cnn", client, b"an-id", traceparent, api_key_name)
            access_log.log(access)
            access_log.flush()

        asyncio.run(log())
        line = stream.getvalue()
        assert line.endswith("\n")
        assert line.count("\n") == 1
        without_time = re.compile(r'"time":"[^"]*",|^\S+ \S+ ')
        assert without_time.sub("", line[:-1]) == without_time.sub("", formatter.format(expected))


@pytest.mark.parametrize(("method", "path"), [("POST", "/classify"), ("GET", "/models")])
async def test_an_error_line_has_the_id_that_the_answer_has(
    predictor: LocalPredictor, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    def fail_at_once(*_: object) -> None:
        raise RuntimeError("a secret")

    predictor.submit = fail_at_once  # type: ignore[method-assign, assignment]
    if path == "/models":
        predictor.models = fail_at_once  # type: ignore[method-assign, assignment]
    async with client_of(predictor, access_log=False) as client:
        response = await client.request(method, path, content=RAW)
    assert (response.status_code, response.json()) == (500, {"error": "internal error"})
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert getattr(line, FIELDS) == {"request_id": response.headers["x-request-id"]}


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_a_process_writes_one_access_line_a_request(
    add_classifier: Callable[..., Path], tmp_path: Path, workers: str
) -> None:
    add_classifier()
    flags = ("--models-dir", str(tmp_path), "--workers", workers, "--access-log", "--log-format", "json")
    with serving(*flags) as service:
        async with connected(service.port) as connection:
            sent = {"x-request-id": "the-id"}
            assert (await connection.ask("POST", "/classify", RAW, sent)).status == 200
        assert service.stop() == 0
        assert service.process.stderr is not None
        lines = [json.loads(line) for line in service.process.stderr]
    (line,) = [line for line in lines if "classify" in str(line)]
    assert (line["message"], line["request_id"], line["status"]) == ("answered", "the-id", 200)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_old_flag_is_warned_of_once(
    add_classifier: Callable[..., Path], tmp_path: Path, workers: str
) -> None:
    add_classifier()
    flags = ("--models-dir", str(tmp_path), "--workers", workers, "--max-queue-delay-seconds", "0.001")
    with serving(*flags) as service:
        assert service.stop() == 0
        assert service.process.stderr is not None
        lines = [*service.lines, *service.process.stderr]
    (warning,) = [line for line in lines if "WARNING" in line]
    assert "--max-queue-delay-seconds is deprecated" in warning
    assert "use --max-batch-delay-seconds" in warning
