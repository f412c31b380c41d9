"""The cost of HTTP per 64 requests: the bytes of 64 connections in, 64 responses out, one model in between.

`test_engine` measures the model's part, a batch of 64.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture
from uvicorn.server import ServerState

from service.http.app import create_app
from service.http.fast.connections import Connections, Limits
from service.http.fast.protocol import HttpProtocol
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings

CONNECTIONS = 64
HEAD = (
    "POST /classify?model=mlp HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/octet-stream\r\n"
)
RAW_ANSWER = "Accept: application/octet-stream\r\n"


class Socket(asyncio.Transport):
    """Counts the responses that a protocol writes, and discards them."""

    written = 0

    def write(self, data: Any) -> None:
        """Count one response."""
        Socket.written += data.startswith(b"HTTP/1.1 200 OK")

    def is_closing(self) -> bool:
        """Return False: it never closes."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: it has no information."""
        del name
        return default


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("path", ["fast", "asgi"])
@pytest.mark.parametrize("answer", ["raw", "json"])
def test_64_requests(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, mlp: Path, path: str, answer: str
) -> None:
    """Answer one raw image per connection, on the fast path or through ASGI."""
    settings = Settings(models_dir=mlp.parent.parent, default_classifier="mlp")
    metrics = Metrics()

    async def start() -> tuple[LocalPredictor, list[HttpProtocol]]:
        predictor = LocalPredictor(settings, metrics)
        await predictor.start()
        dispatch = create_app(predictor, settings, metrics)
        config = uvicorn.Config(dispatch, lifespan="off", log_config=None)
        config.load()
        fast_path = dispatch.fast_path if path == "fast" else None
        state = ServerState()
        connections = Connections(Limits.of(settings))
        protocols = [
            HttpProtocol(connections, fast_path, config=config, server_state=state)
            for _ in range(CONNECTIONS)
        ]
        for protocol in protocols:
            protocol.connection_made(Socket())
        return predictor, protocols

    predictor, protocols = loop.run_until_complete(start())
    head = HEAD + (RAW_ANSWER if answer == "raw" else "") + "Content-Length: 784\r\n\r\n"
    request = head.encode("ascii") + bytes(784)

    async def ask() -> None:
        before = Socket.written
        for protocol in protocols:
            protocol.data_received(request)
        while Socket.written < before + CONNECTIONS:  # noqa: ASYNC110, an event would add to the measured cost
            await asyncio.sleep(0)

    benchmark(lambda: loop.run_until_complete(ask()))
    loop.run_until_complete(predictor.close())
