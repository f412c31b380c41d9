"""An HTTP worker: routes over a remote predictor, and a line to the supervisor. Loads no onnxruntime."""

import asyncio
import itertools
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from service.errors import FrameError, ModelNotReady
from service.http.api_keys import kept_current, read_keys
from service.http.app import create_app
from service.http.dispatch import Front
from service.http.server import Server
from service.memory import leave_out_of_collections
from service.observability.metrics import Metrics
from service.serving.predictor import Predictor
from service.settings import Settings
from service.split import messages
from service.split.engine_client import RemotePredictor
from service.split.frames import Frame, Link
from service.split.messages import Kind
from service.split.metric_totals import registry_of

if TYPE_CHECKING:
    from service.http.tracing import Tracing

PUSH_SECONDS = 0.5
"""A worker that is killed takes what it counted since its last push with it."""


GATHER_SECONDS = 5.0


class Line:
    """A worker's end of the connection to its supervisor, which adds the workers' metrics up."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
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
        """Push for ever; that pushes come is also how the supervisor knows that we are not hung."""
        while True:
            self.push()
            await asyncio.sleep(PUSH_SECONDS)

    def push(self, number: int = 0) -> None:
        """Send this process's metrics."""
        families = list(self._metrics.registry.collect())
        self._link.send(Kind.METRICS, messages.metrics_header(number, "", families))

    def tell_ready(self) -> None:
        """Say that requests are served."""
        self._link.send(Kind.READY, [])

    async def gather(self) -> CollectorRegistry:
        """The whole service's metrics."""
        number = next(self._numbers)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self.push(number)
        try:
            _, families = messages.read_metrics(await asyncio.wait_for(future, GATHER_SECONDS))
        except TimeoutError:
            raise ModelNotReady("the other processes' metrics did not come") from None
        finally:
            self._waiting.pop(number, None)
        return registry_of(families)

    async def close(self) -> None:
        """End the connection once everything is sent."""
        self._closing = True
        self._link.close()
        await self._closed.wait()

    def link_opened(self, link: Link) -> None:
        """See `service.split.frames.Owner`."""

    def link_lost(self, _: Link) -> None:
        """See `service.split.frames.Owner`: unless we closed it, the supervisor is dead, so we end too."""
        self._closed.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ModelNotReady("the service is ending"))
        if not self._closing:
            os.kill(os.getpid(), signal.SIGTERM)

    def frame_received(self, _: Link, frame: Frame) -> None:
        """See `service.split.frames.Owner`."""
        if frame.kind == Kind.METRICS:
            self.push()
            return
        if frame.kind != Kind.REPLY:
            raise FrameError(f"frame is of kind {frame.kind}, expected a reply or a question for metrics")
        future = self._waiting.get(messages.read_id(frame))
        if future is not None and not future.done():
            future.set_result(frame)


async def run(
    settings: Settings, path: Path, listener_fd: int, line_fd: int, tracing: "Tracing | None"
) -> None:
    """Serve HTTP on a listener's socket until SIGTERM, with the engine behind `path`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # reloading is the supervisor's affair
    metrics = Metrics()
    keys = read_keys(settings.api_keys_file)
    line = Line(metrics)
    await line.open(line_fd)
    predictor = RemotePredictor(path)

    def make(predictor: Predictor) -> Front:
        return create_app(predictor, settings, metrics, line.gather, keys)

    app = make(predictor) if tracing is None else tracing.traced(make, predictor)
    pushing = asyncio.ensure_future(line.keep_pushing())
    # The workers share a port: one that accepted before it has an engine would answer 503 beside others
    # that answer.
    await predictor.connected()
    server = Server(app, settings, predictor.stop_being_ready, lambda _: line.tell_ready())
    leave_out_of_collections()
    async with kept_current(keys):
        await server.serve([socket.socket(fileno=listener_fd)])
    pushing.cancel()
    line.push()
    await predictor.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    await line.close()
