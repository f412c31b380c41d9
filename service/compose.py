"""The composition root: builds the parts of a service once, and runs them in each of its forms.

Only what a form needs is imported: an HTTP worker loads no onnxruntime, the engine process no HTTP.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from service.addresses import address_of, open_listeners
from service.errors import SettingsError
from service.hangups import Hangups
from service.memory import freeze_and_enable_gc, give_back_free_memory
from service.observability.agent_check import AgentPort, state_of
from service.observability.busy import Part, ThreadClock
from service.observability.load import GAUGE_SECONDS, LoadMeter, keep_noting
from service.observability.load_reports import LoadReports
from service.observability.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from service.batching.queue import BatchRecord
    from service.grpc.server import RpcServer
    from service.http.api_keys import ApiKeys
    from service.http.dispatch import Dispatch
    from service.observability.statistics import Gather
    from service.observability.tracing import Tracing
    from service.serving.local import LocalPredictor
    from service.serving.predictor import Predictor

logger = logging.getLogger("inkserve")


@dataclass(frozen=True)
class Parts:
    """The parts that every process of a service has.

    tracing: None if it is off. load_reports: brought up to date by whoever knows the load of all processes.
    """

    settings: Settings
    metrics: Metrics
    tracing: "Tracing | None"
    load_reports: LoadReports

    @classmethod
    def open(cls, settings: Settings) -> "Parts":
        """Build the parts. Raises SettingsError if tracing is on and OpenTelemetry's SDK is missing."""
        reports = LoadReports(always=settings.load_reports == "always")
        return cls(settings, Metrics(), _open_tracing(settings), reports)

    def keys(self) -> "ApiKeys | None":
        """Read the API keys, if a file of them is set. Raises SettingsError."""
        from service.http.api_keys import read_keys

        return read_keys(self.settings.api_keys_file)

    def predictor(self) -> "LocalPredictor":
        """Build the predictor of this process, with no model loaded yet. Raises SettingsError."""
        from service.serving.local import LocalPredictor

        if self.settings.trusted_keys is not None:
            from service.models.signatures import read_trusted_keys

            read_trusted_keys(self.settings.trusted_keys)  # fail early, and only once, if one is bad
        _watch_gpu(self.settings, self.metrics)
        trace_batch = None if self.tracing is None else _batch_tracer(self.tracing)
        return LocalPredictor(self.settings, self.metrics, trace_batch)

    def app(
        self,
        predictor: "Predictor",
        keys: "ApiKeys | None",
        gather: "Gather | None" = None,
    ) -> "Dispatch":
        """Build the HTTP application over a predictor. gather: the metrics of all processes, if several."""
        from service.http.app import create_app

        reports = None if self.settings.load_reports == "off" else self.load_reports
        return create_app(predictor, self.settings, self.metrics, gather, keys, self.tracing, reports)

    def rpc_server(
        self,
        predictor: "Predictor",
        app: "Dispatch",
        keys: "ApiKeys | None",
        gather: "Gather | None" = None,
        *,
        shared: bool = False,
    ) -> "RpcServer | None":
        """Build the gRPC server beside the HTTP application, if its port is set. Raises SettingsError."""
        if self.settings.grpc_port is None:
            return None
        from service.grpc.server import RpcServer

        return RpcServer(predictor, self.settings, app.lifecycle, keys, gather, shared=shared)

    async def close(self) -> None:
        """Send the remaining spans."""
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)


async def serve(settings: Settings, hangups: Hangups) -> int:
    """Load the models, serve until a signal, answer what was accepted; all in this process.

    Raises RepositoryError or EngineError if no model or no default model can be served.
    """
    from service.http.tls import open_tls

    open_tls(settings)  # fail before the models load
    _check_grpc(settings)
    agent_listeners = (
        [] if settings.agent_port is None else open_listeners(settings.host, settings.agent_port)
    )
    rpc_listeners = [] if settings.grpc_port is None else open_listeners(settings.host, settings.grpc_port)
    parts = Parts.open(settings)
    keys = parts.keys()
    predictor = parts.predictor()
    async with _loading(predictor) as loading:
        await asyncio.to_thread(_import_http, settings)
        from service.http.changing_files import kept_current
        from service.http.server import Server, log_ready

        _watch_loop(parts.metrics, "http", predictor)
        meter = LoadMeter(settings.max_queue_requests)
        parts.metrics.watch_load(lambda: meter.over(GAUGE_SECONDS).load)
        app = parts.app(predictor, keys)
        rpc = parts.rpc_server(predictor, app, keys)
        server = Server(
            app,
            settings,
            predictor.stop_being_ready,
            partial(log_ready, settings=settings),
            None if rpc is None else rpc.stop,
        )
        await loading
    hangups.reload_with(predictor.reload)
    freeze_and_enable_gc()
    give_back_free_memory()
    agent = AgentPort(agent_listeners, lambda: state_of(ready=predictor.ready(), stopping=server.stopping))
    noting = asyncio.ensure_future(
        keep_noting(meter, parts.metrics.load_families, parts.load_reports.update, agent.update)
    )
    await agent.start()
    if rpc is not None:
        address = address_of(rpc_listeners[0])
        await rpc.start(rpc_listeners)
        logger.info("gRPC is ready at %s", address)
    async with kept_current(keys):
        await server.serve()
    if rpc is not None:
        await rpc.stop(0)  # what a second signal has left
    agent.close()
    noting.cancel()
    hangups.ignore()
    await predictor.close()
    await parts.close()
    logger.info("stopped")
    return 0


@contextlib.asynccontextmanager
async def _loading(predictor: "LocalPredictor") -> AsyncIterator["asyncio.Future[None]"]:
    """Load the models meanwhile; if anything fails, wait for the thread that loads, then close the predictor.

    A thread inside onnxruntime must not outlive the interpreter: the process would end with a signal.
    """
    loading = asyncio.ensure_future(predictor.start())
    try:
        yield loading
    except BaseException:
        predictor.stop_loading()
        await asyncio.gather(loading, return_exceptions=True)
        await predictor.close()
        raise


def _import_http(settings: Settings) -> None:
    """Import FastAPI and uvicorn, which takes 0.2 s, while onnxruntime opens the models."""
    import service.http.app
    import service.http.server

    if settings.grpc_port is not None:
        import service.grpc.server  # noqa: F401


def _check_grpc(settings: Settings) -> None:
    """Raise SettingsError if gRPC is on and a package of its extra is missing; imports none of them."""
    missing = [name for name in ("grpc", "google.protobuf") if not _is_installed(name)]
    if settings.grpc_port is not None and missing:
        raise SettingsError(
            f"grpc_port is {settings.grpc_port}, but the extra `grpc` is missing: no module {missing[0]}"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a package that would hold it is missing, or its place is taken
        return False


async def supervise(settings: Settings, arguments: Sequence[str], hangups: Hangups, with_engine: bool) -> int:
    """Run the processes of a split service, or only its HTTP half."""
    from service.http.api_keys import read_keys
    from service.http.tls import open_tls
    from service.split.supervisor import Supervisor, private_socket

    # The workers need the keys and certificates; fail early, and only once, if a file is bad.
    read_keys(settings.api_keys_file)
    open_tls(settings)
    _check_grpc(settings)
    freeze_and_enable_gc()
    if settings.socket is not None:
        return await Supervisor(settings, arguments, settings.socket, with_engine, hangups).run()
    with private_socket() as path:
        return await Supervisor(settings, arguments, path, with_engine, hangups).run()


async def run_engine(
    settings: Settings, path: Path, hangups: Hangups, lifeline: int | None = None, order: int | None = None
) -> int:
    """Serve the models on a Unix socket until a signal.

    lifeline: the reading end of a pipe from the supervisor; at end-of-file the supervisor has died, and this
        process exits too. None without a supervisor.
    order: of another one, for a spare: load no model before a byte comes, exit at end-of-file.
    """
    import service.serving.local  # noqa: F401
    from service.split.engine_server import EngineServer

    if order is not None:
        told = os.read(order, 1)  # blocks the loop, which has nothing else to do
        os.close(order)
        if not told:
            return 0
    loop = asyncio.get_running_loop()
    if lifeline is not None:
        loop.add_reader(lifeline, _stop_without_supervisor, lifeline)
    parts = Parts.open(settings)
    parts.metrics.watch_process()
    predictor = parts.predictor()
    _watch_loop(parts.metrics, "engine", predictor)
    async with _loading(predictor) as loading:
        await loading
    server = EngineServer(predictor, settings.max_request_rows, parts.metrics.registry.collect)
    stopping = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stopping.set)
    hangups.reload_with(server.reload)
    freeze_and_enable_gc()
    give_back_free_memory()
    await server.start(path)
    logger.info("the engine is ready at %s", path)
    await stopping.wait()
    hangups.ignore()
    predictor.stop_being_ready()
    server.send_state()
    with contextlib.suppress(TimeoutError):
        longest = settings.drain_seconds + settings.shutdown_timeout_seconds
        async with asyncio.timeout(longest):
            await server.wait_until_no_clients()
    await predictor.close()
    await server.close()
    await parts.close()
    return 0


async def run_worker(settings: Settings, path: Path, link_fd: int, *listener_fds: int) -> int:
    """Serve HTTP for a supervisor, with the engine behind `path`."""
    from service.split.worker import run

    parts = Parts.open(settings)
    # The sum over the workers is their mean share, and stays one when a worker is replaced.
    clock, workers = ThreadClock(), max(1, settings.workers)
    for seconds in (parts.metrics.busy_seconds, parts.metrics.work_seconds):
        seconds.watch("http", lambda: clock.busy_seconds() / workers)
    await run(
        settings,
        path,
        link_fd,
        listener_fds,
        parts.metrics,
        parts.keys(),
        parts.app,
        parts.load_reports,
        partial(parts.rpc_server, shared=True),
    )
    await parts.close()
    return 0


def _open_tracing(settings: Settings) -> "Tracing | None":
    if settings.tracing == "off":
        return None
    try:
        from service.observability.tracing import Tracing
    except ImportError as error:
        raise SettingsError(
            f"tracing is {settings.tracing}, but the extra `tracing` is missing: {error}"
        ) from error
    return Tracing(settings.tracing)


def _batch_tracer(tracing: "Tracing") -> "Callable[[str, BatchRecord], None]":
    def trace_batch(model: str, batch: "BatchRecord") -> None:
        tracing.trace_batch(
            model,
            rows=batch.rows,
            reason=batch.reason,
            started=batch.started,
            compute_seconds=batch.compute_seconds,
            failed=batch.failed,
            traceparents=batch.traceparents,
        )

    return trace_batch


def _watch_loop(metrics: Metrics, part: Part, predictor: "LocalPredictor") -> None:
    """Count how busy this thread's event loop is, which runs some of the predictor's batches."""
    clock = ThreadClock()
    metrics.busy_seconds.watch(part, clock.busy_seconds)
    metrics.work_seconds.watch(part, lambda: clock.busy_seconds() - predictor.spared_on_loop_seconds())


def _watch_gpu(settings: Settings, metrics: Metrics) -> None:
    if settings.provider == "cpu":
        return
    from service.observability.gpu import open_gpu

    gpu = open_gpu(settings.device_id)
    if gpu is not None:
        metrics.registry.register(gpu)


def _stop_without_supervisor(lifeline: int) -> None:
    asyncio.get_running_loop().remove_reader(lifeline)
    os.kill(os.getpid(), signal.SIGTERM)
