"""What runs for ever ends when it is cancelled, in whatever iteration of the event loop that happens."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.hangups import Hangups
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings
from service.split import supervisor
from service.split.engine_client import EngineClient
from service.split.engine_server import EngineServer
from service.split.supervisor import Supervisor

ITERATIONS = 30
"""More than an exchange with the engine takes."""

SECONDS = 10.0


@pytest.fixture
async def engine(add_classifier: Callable[..., Path], tmp_path: Path) -> AsyncIterator[EngineServer]:
    """Serves a model on engine.sock."""
    add_classifier()
    metrics = Metrics()
    predictor = LocalPredictor(Settings(models_dir=tmp_path), metrics)
    await predictor.start()
    server = EngineServer(predictor, 8, metrics.registry.collect)
    await server.start(tmp_path / "engine.sock")
    yield server
    await predictor.close()
    await server.close()


async def iterations(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("engine")
async def test_the_supervisors_ticking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Supervisor._count

    async def count(parent: Supervisor, _: float) -> None:
        await original(parent, SECONDS)  # not the length of a tick, which is zero here

    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.0)
    monkeypatch.setattr(Supervisor, "_count", count)
    path = tmp_path / "engine.sock"
    parent = Supervisor(Settings(models_dir=tmp_path, port=0, workers=1), [], path, False, Hangups())
    await parent._predictor.connected()
    for number in range(ITERATIONS):
        ticking = asyncio.ensure_future(parent._tick())
        await iterations(number)
        ticking.cancel()
        await asyncio.wait({ticking}, timeout=SECONDS)
        assert ticking.done(), f"cancelled in iteration {number}, it went on"
    await parent._predictor.close()
    for listener in parent.listeners:
        listener.close()


async def test_an_engines_client_whose_engine_has_gone(engine: EngineServer, tmp_path: Path) -> None:
    for number in range(ITERATIONS):
        client = EngineClient(tmp_path / "engine.sock")
        await client.connected()
        for link in list(engine._links):  # of an earlier client too, if it had just connected again
            link.abort()
        await iterations(number)
        async with asyncio.timeout(SECONDS):
            await client.close()
