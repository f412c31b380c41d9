"""The gauges of requests in flight and queued: by whatever path a request leaves, they return to 0."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.errors import EngineError
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.serving.predictor import Cancel
from tests.support.held import Held
from tests.support.http import exchange, png, request, settings
from tests.support.listener import Listener, listening
from tests.support.live import connected

WHOLE = {
    "fast": request(),
    "asgi": request(png(7), kind="image/png"),
    "chunked": request(chunked=True),
}
TAKEN = [pytest.param(whole, id=name) for name, whole in WHOLE.items()]
PROBE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
async def listener(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(
        predictor, tmp_path, request_timeout_seconds=0.3, keep_alive_seconds=5.0
    ) as listener:
        yield listener


def in_flight(listener: Listener) -> float | None:
    return listener.metrics.registry.get_sample_value("inkserve_requests_in_flight")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("whole", TAKEN)
async def test_a_request_counts_until_it_is_answered(
    listener: Listener, predictor: LocalPredictor, whole: bytes
) -> None:
    held = Held(predictor)
    async with connected(listener.port) as one, connected(listener.port) as other:
        for number, connection in enumerate((one, other), start=1):
            connection.writer.write(whole)
            await held.holds(number)
            assert in_flight(listener) == number
        held.let_go()
        assert [(await each.receive()).status for each in (one, other)] == [200, 200]
        assert in_flight(listener) == 0  # though both connections are open
        assert len(listener.connections.open) == 2


@pytest.mark.slow
@pytest.mark.parametrize("whole", TAKEN)
async def test_a_request_counts_while_its_body_comes(listener: Listener, whole: bytes) -> None:
    async with connected(listener.port) as connection:
        connection.writer.write(whole[:-9])
        await until(lambda: in_flight(listener) == 1)
        assert (await connection.receive()).status == 408
        assert in_flight(listener) == 0


@pytest.mark.parametrize("whole", TAKEN)
async def test_a_request_whose_client_leaves_counts_no_more(
    listener: Listener, predictor: LocalPredictor, whole: bytes
) -> None:
    held = Held(predictor)
    async with connected(listener.port) as connection:
        connection.writer.write(whole)
        await held.holds(1)
        assert in_flight(listener) == 1
    await until(lambda: in_flight(listener) == 0)


@pytest.mark.parametrize("whole", TAKEN)
async def test_a_request_that_fails_counts_no_more(
    listener: Listener, predictor: LocalPredictor, whole: bytes
) -> None:
    def submit(*_: object, admitted: bool = False) -> Cancel:
        raise EngineError(f"the device is gone, admitted: {admitted}")

    predictor.submit = submit  # type: ignore[assignment,method-assign]
    async with connected(listener.port) as connection:
        assert (await exchange(connection, whole)).status == 500
        assert (await exchange(connection, request(b"no image"))).status == 400
        assert in_flight(listener) == 0


async def test_a_probe_and_a_scrape_are_no_load(listener: Listener) -> None:
    async with connected(listener.port) as connection:
        connection.writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
        assert b"inkserve_requests_in_flight 0.0" in (await connection.receive()).body
        assert (await exchange(connection, PROBE)).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("whole", TAKEN)
async def test_a_queued_request_counts_until_it_expires_and_a_shed_one_never(
    add_classifier: Callable[..., Path], tmp_path: Path, whole: bytes
) -> None:
    add_classifier()
    values = {"max_queue_requests": 1, "max_batch_delay_seconds": 10.0}
    metrics = Metrics()
    predictor = LocalPredictor(settings(tmp_path).model_copy(update=values), metrics)
    await predictor.start()

    def queued() -> float | None:
        return metrics.registry.get_sample_value("inkserve_requests_queued")

    async with (
        listening(predictor, tmp_path, request_timeout_seconds=0.3) as listener,
        connected(listener.port) as first,
        connected(listener.port) as second,
    ):
        first.writer.write(whole)
        await until(lambda: queued() == 1)
        assert in_flight(listener) == 1
        assert (await exchange(second, whole)).status == 429
        assert (in_flight(listener), queued()) == (1, 1)
        assert (await first.receive()).status == 504
        assert (in_flight(listener), queued()) == (0, 0)
    await predictor.close()
