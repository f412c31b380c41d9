"""A real listener in this process, over whatever predictor a test has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from service.http.app import create_app
from service.http.dispatch import Dispatch
from service.http.fast.connections import Connections, Limits
from service.http.fast.protocol import HttpProtocol
from service.http.types import Receive, Scope, Send
from service.observability.metrics import Metrics
from service.serving.predictor import Predictor
from tests.support.http import settings

if TYPE_CHECKING:
    from service.http.api_keys import ApiKeys
    from service.observability.load_reports import LoadReports
    from service.observability.tracing import Tracing


@dataclass
class Listener:
    """A server in this process. through_asgi: paths of the requests that took the ASGI path."""

    port: int
    dispatch: Dispatch
    state: ServerState
    metrics: Metrics
    through_asgi: list[str]
    connections: Connections

    def counted(self, status: int, model: str = "first-pixel", route: str = "/classify") -> float | None:
        labels = {"route": route, "model": model, "status": str(status)}
        return self.metrics.registry.get_sample_value("inkserve_requests_total", labels)


@asynccontextmanager
async def listening(
    predictor: Predictor,
    tmp_path: Path,
    tracing: "Tracing | None" = None,
    keys: "ApiKeys | None" = None,
    load_reports: "LoadReports | None" = None,
    **changes: Any,
) -> AsyncIterator[Listener]:
    metrics = Metrics()
    configured = settings(tmp_path).model_copy(update=changes)
    dispatch = create_app(
        predictor, configured, metrics, keys=keys, tracing=tracing, load_reports=load_reports
    )
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await dispatch(scope, receive, send)

    config = uvicorn.Config(app, lifespan="off", log_config=None, server_header=False, proxy_headers=False)
    state = ServerState()
    config.load()
    limits = Limits.of(configured)
    connections = Connections(limits, metrics, tick_seconds=0.02)
    make = partial(HttpProtocol, connections, dispatch.fast_path, config=config, server_state=state)
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield Listener(server.sockets[0].getsockname()[1], dispatch, state, metrics, seen, connections)
    finally:
        # A connection that waits is accepted in the first turn of the loop, and gets its transport in the
        # second. If the server were closed between them, asyncio would leave its socket open, and the warning
        # would fail another test.
        for _ in range(3):
            await asyncio.sleep(0)
        server.close()
        for connection in tuple(connections.open):  # one that lingers would outlive the loop, likewise
            connection.abandon()
        await asyncio.sleep(0)
        if state.tasks:  # a file that a cancelled task had open would be reported in another test
            await asyncio.wait(state.tasks, timeout=5)
