"""A connection that has reached its age is closed with a response, and no request is lost by it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.serving.local import LocalPredictor
from tests.support.http import exchange, png, request
from tests.support.listener import Listener, listening
from tests.support.live import connected

AGE = 0.3
WHOLE = {
    "fast": request(),
    "asgi": request(png(7), kind="image/png"),
    "chunked": request(chunked=True),
    "probe": b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n",
}
TAKEN = [pytest.param(whole, id=name) for name, whole in WHOLE.items()]


@pytest.fixture
async def listener(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(
        predictor, tmp_path, connection_max_age_seconds=AGE, keep_alive_seconds=5.0
    ) as listener:
        yield listener


async def lifetime(port: int, whole: bytes) -> float:
    """Ask over one connection until a response closes it; returns the seconds until then."""
    began = time.monotonic()
    async with connected(port) as connection:
        while True:
            connection.writer.write(whole)
            response = await connection.receive()
            assert response.status == 200
            if response.headers.get("connection") == "close":
                assert await connection.reader.read() == b""
                return time.monotonic() - began
            await asyncio.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("whole", TAKEN)
async def test_connections_that_begin_together_close_at_different_ages(
    listener: Listener, whole: bytes
) -> None:
    ages = await asyncio.gather(*(lifetime(listener.port, whole) for _ in range(12)))
    assert min(ages) >= AGE / 2
    assert max(ages) - min(ages) > AGE / 10
    assert not listener.connections.open


@pytest.mark.slow
@pytest.mark.parametrize("whole", TAKEN)
async def test_requests_that_are_there_already_are_answered_before_the_close(
    listener: Listener, whole: bytes
) -> None:
    async with connected(listener.port) as connection:
        await asyncio.sleep(AGE)
        connection.writer.write(whole * 50)
        responses = [await connection.receive() for _ in range(50)]
        assert {response.status for response in responses} == {200}
        assert [response.headers.get("connection") for response in responses[:-1]] == [None] * 49
        last = responses[-1]
        if "connection" not in last.headers:  # it was answered in the turn in which it was read
            last = await exchange(connection, whole)
        assert last.headers["connection"] == "close"


@pytest.mark.slow
async def test_an_idle_connection_outlives_its_age(listener: Listener) -> None:
    """Closing it could cross a request on its way."""
    async with connected(listener.port) as connection:
        await asyncio.sleep(2 * AGE)
        assert len(listener.connections.open) == 1
        response = await exchange(connection, request())
        assert (response.status, response.headers["connection"]) == (200, "close")


async def test_without_an_age_a_connection_stays(predictor: LocalPredictor, tmp_path: Path) -> None:
    async with listening(predictor, tmp_path) as listener, connected(listener.port) as connection:
        for _ in range(3):
            assert "connection" not in (await exchange(connection, request())).headers
            await asyncio.sleep(0.05)
