"""The listening end of the server, on a real socket and uvloop, as `python -m service` runs it."""

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from service.http.app import create_app
from service.http.server import ACCEPTED_PER_ITERATION, Server
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from service.settings import Settings

TURNS = 10


async def _accepted(settings: Settings, listener: socket.socket | None) -> list[int]:
    """How many of 100 connections that came at once were accepted, after each of TURNS turns."""
    metrics = Metrics()
    app = create_app(LocalPredictor(settings, metrics), settings, metrics)
    ports: asyncio.Queue[int] = asyncio.Queue()
    server = Server(app, settings, lambda: None, lambda bound: ports.put_nowait(bound.getsockname()[1]))
    running = asyncio.ensure_future(server.serve(None if listener is None else [listener]))
    port = await ports.get()
    accepted = []
    with ExitStack() as stack:
        for _ in range(100):  # the kernel completes these without us
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        for _ in range(TURNS):
            await asyncio.sleep(0)
            accepted.append(len(server.server_state.connections))
    server.should_exit = True
    await running
    assert not server.server_state.connections
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    return accepted


def test_connections_that_come_at_once_are_accepted_at_once(tmp_path: Path) -> None:
    assert ACCEPTED_PER_ITERATION * (TURNS - 4) >= 100
    accepted = uvloop.run(_accepted(Settings(models_dir=tmp_path, port=0), None))
    assert accepted[-1] == 100


def test_a_listener_that_others_share_is_left_some_connections(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        accepted = uvloop.run(_accepted(Settings(models_dir=tmp_path), listener))
    assert 0 < accepted[-1] <= TURNS
