"""What a request costs between two sockets: 64 connections' bytes in, as many answers out, one model between.

The share of the model is what `test_engine` says of a batch of 64.
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
from service.http.fast.protocol import FastPathProtocol
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings

CONNECTIONS = 64
HEAD = (
    "POST /classify?model=mlp HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/octet-stream\r\n"
)
RAW_ANSWER = "Accept: application/octet-stream\r\n"


class Socket(asyncio.Transport):
    """Takes what a protocol writes, and throws it away."""

    written = 0

    def write(self, data: Any) -> None:
        """Count one answer."""
        Socket.written += data.startswith(b"HTTP/1.1 200 OK")

    def is_closing(self) -> bool:
        """It never is."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is none."""
        del name
        return default


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("way", ["direct", "asgi"])
@pytest.mark.parametrize("answer", ["raw", "json"])
def test_64_requests(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, mlp: Path, way: str, answer: str
) -> None:
    """One raw image from each connection, answered in the protocol or through ASGI."""
    settings = Settings(models_dir=mlp.parent.parent, default_classifier="mlp")
    metrics = Metrics()

    async def start() -> tuple[LocalPredictor, list[FastPathProtocol]]:
        predictor = LocalPredictor(settings, metrics)
        await predictor.start()
        dispatch = create_app(predictor, settings, metrics)
        config = uvicorn.Config(dispatch, lifespan="off", log_config=None)
        config.load()
        direct = dispatch.fast_path if way == "direct" else None
        state = ServerState()
        protocols = [
            FastPathProtocol(direct, config=config, server_state=state, app_state={})
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
        while Socket.written < before + CONNECTIONS:  # noqa: ASYNC110, an event would cost what is measured
            await asyncio.sleep(0)

    benchmark(lambda: loop.run_until_complete(ask()))
    loop.run_until_complete(predictor.close())
