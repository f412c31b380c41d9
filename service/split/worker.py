"""An HTTP worker: the HTTP application over the engine's predictor. Loads no onnxruntime."""

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry

from service.addresses import open_listeners
from service.errors import FrameError, ModelNotReady
from service.http.api_keys import ApiKeys
from service.http.changing_files import kept_current
from service.http.dispatch import Dispatch
from service.http.server import Server
from service.memory import freeze_and_enable_gc
from service.observability.load_reports import LoadReports
from service.observability.metrics import Metrics
from service.observability.statistics import Gather
from service.serving.predictor import Predictor
from service.settings import Settings
from service.split import messages
from service.split.engine_client import MEMORY_BYTES, EngineClient
from service.split.frames import Frame, Link
from service.split.messages import Kind
from service.split.metric_totals import registry_of

PUSH_SECONDS = 0.5
"""A killed worker loses what it has counted since its last push."""

GATHER_SECONDS = 5.0


class OtherServer(Protocol):
    """A server of another protocol; see `service.grpc.server.RpcServer`."""

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Listen on the addresses of these sockets."""
        ...

    async def stop(self, seconds: float) -> None:
        """Answer the requests in flight, within these seconds, and stop."""
        ...


class SupervisorLink:
    """A worker's end of the connection to its supervisor, which sums the workers' metrics."""

    def __init__(self, metrics: Metrics, load_reports: LoadReports) -> None:
        self._metrics = metrics
        self._load_reports = load_reports
        self._link = Link(self)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._numbers = itertools.count(1)
        self._closing = False
        self._closed = asyncio.Event()

    async def open(self, fd: int) -> None:
        """Take over the connected socket that the supervisor passed on."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._link, sock=socket.socket(fileno=fd))

    async def keep_pushing(self) -> None:
        """Push the metrics for ever; the pushes are also a heartbeat for the supervisor."""
        while True:
            self.push()
            await asyncio.sleep(PUSH_SECONDS)

    def push(self, number: int = 0) -> None:
        """Send this process's metrics."""
        families = list(self._metrics.registry.collect())
        self._link.send(Kind.METRICS, messages.metrics_header(number, "", families))

    def send_ready(self) -> None:
        """Report that requests are served."""
        self._link.send(Kind.READY, [])

    async def gather(self) -> CollectorRegistry:
        """Ask for the whole service's metrics. Raises ModelNotReady if they do not come in time."""
        number = next(self._numbers)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self.push(number)
        try:
            async with asyncio.timeout(GATHER_SECONDS):
                _, families = messages.read_metrics(await future)
        except TimeoutError:
            raise ModelNotReady("the other processes' metrics did not come in time") from None
        finally:
            self._waiting.pop(number, None)
        return registry_of(families)

    async def close(self) -> None:
        """Close the connection once everything is sent."""
        self._closing = True
        self._link.close()
        await self._closed.wait()

    def link_opened(self, link: Link) -> None:
        """See `service.split.frames.Owner`."""

    def link_lost(self, _: Link) -> None:
        """See `service.split.frames.Owner`: unless we closed it, the supervisor has died, so exit too."""
        self._closed.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ModelNotReady("the service is shutting down"))
        if not self._closing:
            os.kill(os.getpid(), signal.SIGTERM)

    def frame_received(self, _: Link, frame: Frame) -> None:
        """See `service.split.frames.Owner`."""
        if frame.kind == Kind.METRICS:
            self.push()
            return
        if frame.kind == Kind.LOAD:
            self._load_reports.update(messages.read_load(frame))
            return
        if frame.kind != Kind.REPLY:
            raise FrameError(
                f"frame is of kind {frame.kind}, expected a reply, a load or a request for metrics"
            )
        future = self._waiting.get(messages.read_id(frame))
        if future is not None and not future.done():
            future.set_result(frame)


async def run(
    settings: Settings,
    path: Path,
    link_fd: int,
    listener_fds: Sequence[int],
    metrics: Metrics,
    keys: ApiKeys | None,
    build_app: Callable[[Predictor, ApiKeys | None, Gather], Dispatch],
    load_reports: LoadReports,
    build_rpc_server: Callable[[Predictor, Dispatch, ApiKeys | None, Gather], OtherServer | None],
) -> None:
    """Serve HTTP on listening sockets until SIGTERM, with the engine behind `path`.

    link_fd: the connected socket to the supervisor. load_reports: those of the application.
    build_rpc_server: returns the gRPC server, or None if it is off.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor reloads the models
    supervisor = SupervisorLink(metrics, load_reports)
    await supervisor.open(link_fd)
    predictor = EngineClient(path, workers=max(1, settings.workers), memory_bytes=MEMORY_BYTES)
    app = build_app(predictor, keys, supervisor.gather)
    pushing = asyncio.ensure_future(supervisor.keep_pushing())
    # The workers share a port: one that accepted connections before it has an engine would answer 503 while
    # the others answer 200.
    await predictor.connected()
    rpc = build_rpc_server(predictor, app, keys, supervisor.gather)
    if rpc is not None:
        assert settings.grpc_port is not None, "gRPC is off"
        await rpc.start(open_listeners(settings.host, settings.grpc_port, shared=True))
    server = Server(
        app,
        settings,
        predictor.stop_being_ready,
        lambda _: supervisor.send_ready(),
        None if rpc is None else rpc.stop,
    )
    freeze_and_enable_gc()
    async with kept_current(keys):
        await server.serve([socket.socket(fileno=fd) for fd in listener_fds])
    if rpc is not None:
        await rpc.stop(0)  # what a second signal has left
    pushing.cancel()
    supervisor.push()
    await predictor.close()
    await supervisor.close()
