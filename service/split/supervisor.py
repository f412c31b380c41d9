"""The parent of a split service: starts its processes, restarts those that exit, sums their metrics.

Holds the listening sockets, so that the workers share them and pending connections outlive any of them. Knows
nothing of HTTP or onnxruntime.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from service.addresses import address_of, open_listeners, ready_line
from service.errors import FrameError, InkserveError, RepositoryError, Unavailable
from service.hangups import Hangups
from service.observability.agent_check import AgentPort, State, state_of
from service.observability.load import FAMILIES, GAUGE_SECONDS, REPORT_SECONDS, Load, LoadMeter, read_counts
from service.observability.metrics import Metrics
from service.serving.checks import unmet_default
from service.settings import Settings
from service.split import messages
from service.split.child_process import Child
from service.split.engine_client import EngineClient
from service.split.frames import Frame, Link
from service.split.messages import Kind
from service.split.metric_totals import Totals
from service.split.process import Process, start
from service.split.standby import Standby

logger = logging.getLogger("inkserve")

TICK_SECONDS = 0.5
UNRESPONSIVE_TICKS = 20
"""A worker that serves but sends nothing for this many ticks is hung. Counted, not timed: a pause of the
whole container must not count as a hang."""

SCRAPE_SECONDS = 1.0
"""How long a scrape waits for the other processes; if one is late, its last values are used."""

GRACE_SECONDS = 10.0
"""Extra time a process gets to exit, beyond its own timeouts."""


class Worker:
    """One of the HTTP workers: its process and the link to it."""

    def __init__(self, number: int, supervisor: "Supervisor") -> None:
        self.role = f"worker {number}"
        self.ready = asyncio.Event()
        self.unresponsive_ticks = 0
        self.child = Child(self.role, self._spawn, self._ended)
        self._supervisor = supervisor
        self._link: Link | None = None
        self._run = 0
        self._pushed = asyncio.Event()

    async def pushed(self) -> None:
        """Have the worker push its metrics now; returns once they have come, or the worker has exited."""
        if self._link is not None:
            self._pushed.clear()
            self._link.send(Kind.METRICS, [0])
            await self._pushed.wait()

    def tell_load(self, load: Load) -> None:
        """Tell the worker the load of the whole service, for its responses."""
        if self._link is not None and self.ready.is_set():
            self._link.send(Kind.LOAD, messages.load_header(load))

    def tick(self) -> None:
        """Kill the process if it is hung."""
        self.unresponsive_ticks += 1
        if self.ready.is_set():
            self.child.note_working()
        if self.ready.is_set() and self.unresponsive_ticks > UNRESPONSIVE_TICKS:
            logger.error("%s stopped responding; killing it", self.role)
            self.unresponsive_ticks = 0
            self.child.signal(signal.SIGKILL)

    def link_opened(self, link: Link) -> None:
        """See `service.split.frames.Owner`."""
        self._link = link

    def link_lost(self, _: Link) -> None:
        """See `service.split.frames.Owner`."""
        self._link = None
        self._pushed.set()

    def frame_received(self, link: Link, frame: Frame) -> None:
        """See `service.split.frames.Owner`."""
        self.unresponsive_ticks = 0
        if frame.kind == Kind.READY:
            self.ready.set()
        elif frame.kind == Kind.METRICS:
            _, families = messages.read_metrics(frame)
            self._supervisor.totals.update(self.role, str(self._run), families)
            self._pushed.set()
            number = messages.read_id(frame)
            if number:
                self._supervisor.answer_scrape(link, number)
        else:
            raise FrameError(f"frame is of kind {frame.kind}, expected one that a worker sends")

    async def _spawn(self) -> Process:
        self._run += 1
        self.unresponsive_ticks = 0
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), *(listener.fileno() for listener in self._supervisor.listeners))
            process = self._supervisor.start_process("worker", fds)
        await asyncio.get_running_loop().create_unix_connection(lambda: Link(self), sock=ours)
        return process

    def _ended(self) -> None:
        self.ready.clear()
        self._supervisor.totals.lose(self.role)


class Supervisor:
    """A split service's processes.

    arguments: the flags that `settings` came from, for the other processes to read again.
    with_engine: start the engine too, or use one that listens on `path`.
    """

    def __init__(
        self,
        settings: Settings,
        arguments: Sequence[str],
        path: Path,
        with_engine: bool,
        hangups: Hangups,
    ) -> None:
        self._hangups = hangups
        self.totals = Totals()
        self.listeners = open_listeners(settings.host, settings.port)
        port = settings.agent_port
        self._rpc_listeners = _reserved(settings.host, settings.grpc_port)
        self._agent = AgentPort([] if port is None else open_listeners(settings.host, port), self._state)
        self._settings = settings
        self._arguments = arguments
        self._path = path
        self._stopping = asyncio.Event()
        self._metrics = Metrics()
        self._metrics.watch_process()
        self._load = LoadMeter(settings.max_queue_requests)
        self._metrics.watch_load(lambda: self._load.over(GAUGE_SECONDS).load)
        self._lifeline = os.pipe()
        self._predictor = EngineClient(path, self._engine_lost)
        self._workers = [Worker(number, self) for number in range(1, max(1, settings.workers) + 1)]
        self._engine = Child("the engine", self._spawn_engine, lambda: None) if with_engine else None
        self._spare_engine = Standby("the engine", self._start_engine)
        engines = [self._engine] if self._engine is not None else []
        self._children = [*engines, *(worker.child for worker in self._workers)]
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until a signal; returns the exit code: 0, or that of a process that could not start."""
        self._handle_signals()
        ending = [asyncio.ensure_future(child.keep()) for child in self._children]
        starting = asyncio.ensure_future(self._all_ready())
        stopping = asyncio.ensure_future(self._stopping.wait())
        ticking = asyncio.ensure_future(self._tick())
        await asyncio.wait({starting, stopping, *ending}, return_when=asyncio.FIRST_COMPLETED)
        unmet = starting.result() if starting.done() else None
        if starting.done() and unmet is None:
            for child in self._children:
                child.settled = True
            settings = self._settings
            scheme = "http" if settings.ssl_certfile is None else "https"
            await self._agent.start()
            if self._rpc_listeners:
                logger.info("gRPC is ready at %s", address_of(self._rpc_listeners[0]))
            line = ready_line(self.listeners[0], settings.root_path, scheme, playground=settings.playground)
            logger.info("%s", line)
            await asyncio.wait({stopping, *ending}, return_when=asyncio.FIRST_COMPLETED)
        failed = [task.result() for task in ending if task.done()] if not stopping.done() else []
        for task in (starting, stopping, ticking):
            task.cancel()
        await self._stop()
        await asyncio.gather(starting, stopping, ticking, *ending, return_exceptions=True)
        if unmet is not None:
            raise RepositoryError(unmet)
        return max(1, failed[0]) if failed else 0

    def answer_scrape(self, link: Link, number: int) -> None:
        """Send a worker the whole service's metrics."""
        self._start(self._answer_scrape(link, number))

    def start_process(self, command: str, fds: tuple[int, ...]) -> Process:
        """Start a process of the service; it inherits only these file descriptors."""
        numbers = [str(fd) for fd in fds]
        chosen = []
        if self._rpc_listeners:  # the system may have chosen it, and the last of several flags counts
            chosen = ["--grpc-port", str(self._rpc_listeners[0].getsockname()[1])]
        return start(
            [sys.executable, "-m", "service", command, *numbers, *self._arguments, *chosen],
            fds,
            {**os.environ, "INKSERVE_SOCKET": str(self._path)},
        )

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_scrape(self, link: Link, number: int) -> None:
        pushing = [asyncio.ensure_future(worker.pushed()) for worker in self._workers]
        await self._count(SCRAPE_SECONDS)
        await asyncio.wait(pushing, timeout=SCRAPE_SECONDS)
        for task in pushing:
            task.cancel()
        link.send(Kind.REPLY, messages.metrics_header(number, "", list(self.totals.collect())))

    async def _count(self, timeout_seconds: float) -> None:
        """Update the totals with the engine's metrics and our own."""
        self.totals.update("supervisor", "", self._metrics.registry.collect())
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                run, families = await self._predictor.metrics()
            self.totals.update("engine", run, families)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for worker in self._workers:
                worker.tick()
            if self._engine is not None and self._engine.settled and self._predictor.ready():
                self._engine.note_working()
                self._spare_engine.prepare()
            await self._count(TICK_SECONDS)
            self._load.note(read_counts(time.monotonic(), self.totals.select(FAMILIES)))
            load = self._load.over(REPORT_SECONDS)
            self._agent.update(load)
            for worker in self._workers:
                worker.tell_load(load)

    def _state(self) -> State:
        return state_of(ready=self._predictor.ready(), stopping=self._stopping.is_set())

    async def _all_ready(self) -> str | None:
        """Wait until all processes serve; returns what is wrong with the default models, or None."""
        await self._predictor.connected()
        unmet = unmet_default(self._settings, self._predictor.models())
        if unmet is None:
            for worker in self._workers:
                await worker.ready.wait()
        return unmet

    async def _spawn_engine(self) -> Process:
        return self._spare_engine.take() or self._start_engine()

    def _start_engine(self, *order: int) -> Process:
        return self.start_process("engine", (self._lifeline[0], *order))

    def _engine_lost(self) -> None:
        self.totals.lose("engine")
        if self._engine is not None and not self._stopping.is_set():
            self._engine.signal(signal.SIGKILL)  # it is dead already, or hung

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._on_stop, sig)
        self._hangups.reload_with(self._reload)

    def _on_stop(self, sig: signal.Signals) -> None:
        if self._stopping.is_set():
            for child in self._children:
                child.kill()
            return
        logger.info("%s: stopping", sig.name)
        self._stopping.set()

    async def _reload(self) -> None:
        await self._predictor.connected()  # the models may be loading
        try:
            await self._predictor.reload()
        except InkserveError as error:
            logger.error("the models were not reloaded: %s", error)

    async def _stop(self) -> None:
        """Stop the workers first, so that the requests they have accepted still find the engine."""
        self._stopping.set()
        self._hangups.ignore()
        # The workers hold the listeners too; when the last of them closes one, connections are refused.
        for listener in (*self.listeners, *self._rpc_listeners):
            listener.close()
        longest = self._settings.drain_seconds + self._settings.shutdown_timeout_seconds + GRACE_SECONDS
        await asyncio.gather(*(worker.child.stop(longest) for worker in self._workers))
        self._agent.close()
        await self._predictor.close()
        await self._spare_engine.close()
        if self._engine is not None:
            await self._engine.stop(self._settings.shutdown_timeout_seconds + GRACE_SECONDS)
        logger.info("stopped")


def _reserved(host: str, port: int | None) -> list[socket.socket]:
    """Return sockets that keep a port for the gRPC servers of the workers. Raises InkserveError.

    They never listen, so the kernel gives them no connections. A port that is in use is only noticed without
    SO_REUSEPORT, which the workers need.
    """
    if port is None:
        return []
    listeners = open_listeners(host, port)
    port = listeners[0].getsockname()[1]
    for listener in listeners:
        listener.close()
    return open_listeners(host, port, shared=True)


@contextmanager
def private_socket() -> Iterator[Path]:
    """Yield a path for a socket in a private folder, which is removed afterwards."""
    folder = tempfile.mkdtemp(prefix="inkserve-")
    try:
        yield Path(folder) / "engine.sock"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
