"""The command `python -m service [serve | http | engine] [flags]`.

serve: the whole service; with `--workers N`, split into N HTTP workers and an engine process.
http, engine: the halves of a split service on their own, for containers that share `--socket`.
(worker: what the first two start for each of their workers.)

Only what a command needs is imported: an HTTP worker loads no onnxruntime, the engine no HTTP.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvloop

from service.errors import InkserveError, SettingsError
from service.memory import give_back_free_memory, leave_out_of_collections, postpone_collections
from service.observability.logs import configure_logging
from service.settings import Settings, deprecations, load_settings

if TYPE_CHECKING:
    from service.http.tracing import Tracing
    from service.observability.metrics import Metrics
    from service.serving.local import Repository

logger = logging.getLogger("inkserve")

SWITCH_SECONDS = 0.0005
"""How long the event loop may keep the interpreter from a device's thread that has a result. Python's
own 5 ms is as long as a batch takes: the MLP's batches took 157 us a row of the clock, and 126 so."""

COMMANDS = ("serve", "http", "engine", "worker")


async def serve(settings: Settings) -> int:
    """Load the models, serve until a signal, answer what was accepted; all in this process.

    Raises RepositoryError or EngineError where a model cannot be served.
    """
    from service.http.api_keys import kept_current, read_keys
    from service.observability.metrics import Metrics

    metrics = Metrics()
    keys = read_keys(settings.api_keys_file)
    _watch_gpu(settings, metrics)
    tracing = _open_tracing(settings)
    repository = _repository(settings, metrics, tracing)
    loading = asyncio.ensure_future(repository.start())
    await asyncio.to_thread(_import_http)
    from service.http.app import create_app
    from service.http.dispatch import Front
    from service.http.server import Server, log_ready
    from service.serving.predictor import Predictor

    def make(predictor: Predictor) -> Front:
        return create_app(predictor, settings, metrics, keys=keys)

    app = make(repository) if tracing is None else tracing.traced(make, repository)
    server = Server(app, settings, repository.stop_being_ready, log_ready)
    await loading
    _on_hangup(repository.reload)
    leave_out_of_collections()
    give_back_free_memory()
    async with kept_current(keys):
        await server.serve()
    await repository.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    logger.info("stopped")
    return 0


def _import_http() -> None:
    """Import FastAPI and uvicorn, which takes 0.2 s: onnxruntime opens the models meanwhile."""
    import service.http.app
    import service.http.server  # noqa: F401


async def supervise(settings: Settings, arguments: Sequence[str], with_engine: bool) -> int:
    """Run the processes of a split service, or its HTTP half alone."""
    from service.http.api_keys import read_keys
    from service.split.supervisor import Supervisor, private_socket

    read_keys(settings.api_keys_file)  # the workers need them; here it is seen once, and early, that they can
    leave_out_of_collections()
    if settings.socket is not None:
        return await Supervisor(settings, arguments, settings.socket, with_engine).run()
    with private_socket() as path:
        return await Supervisor(settings, arguments, path, with_engine).run()


async def run_engine(settings: Settings, path: Path, lifeline: int | None) -> int:
    """Serve the models on a Unix socket until a signal.

    lifeline: the reading end of a pipe; when it ends, the supervisor is dead, and so are we soon.
    """
    from service.observability.metrics import Metrics
    from service.split.engine_server import Host

    loop = asyncio.get_running_loop()
    if lifeline is not None:
        loop.add_reader(lifeline, _stop_without_supervisor, lifeline)
    metrics = Metrics()
    metrics.watch_process()
    _watch_gpu(settings, metrics)
    tracing = _open_tracing(settings)
    repository = _repository(settings, metrics, tracing)
    await repository.start()
    host = Host(repository, settings.max_request_rows, metrics.registry.collect)
    stopping = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stopping.set)
    _on_hangup(host.reload)
    leave_out_of_collections()
    give_back_free_memory()
    await host.start(path)
    logger.info("the engine is ready at %s", path)
    await stopping.wait()
    repository.stop_being_ready()
    host.tell_state()
    with contextlib.suppress(TimeoutError):
        longest = settings.drain_seconds + settings.shutdown_timeout_seconds
        await asyncio.wait_for(host.clients_left(), longest)
    await repository.close()
    await host.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    return 0


async def run_worker(settings: Settings, path: Path, listener_fd: int, line_fd: int) -> int:
    """Serve HTTP for a supervisor."""
    from service.split.worker import run

    await run(settings, path, listener_fd, line_fd, _open_tracing(settings))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit code: 0, 1 if it cannot serve, 2 for bad settings."""
    command, fds, flags = _split(list(sys.argv[1:] if arguments is None else arguments))
    try:
        settings = load_settings(flags)
        work = _work(command, fds, settings, flags)
    except SettingsError as error:
        print(f"inkserve: {error}", file=sys.stderr)
        return 2
    configure_logging(settings)
    if not fds:  # a supervisor passes its flags on, and has warned already
        for warning in deprecations(flags):
            logger.warning("%s", warning)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anything imports onnxruntime
    # Before anything imports numpy: its BLAS has nothing to do here that pays for threads, which spin before
    # they first sleep, 20 ms of CPU time in all.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.setswitchinterval(SWITCH_SECONDS)
    before = signal.signal(signal.SIGTERM, _leave)
    postpone_collections()
    try:
        return uvloop.run(work)
    except InkserveError as error:
        logger.error("%s", error)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _split(arguments: list[str]) -> tuple[str, list[int], list[str]]:
    """The command, the file descriptors that a supervisor passes on, and the flags."""
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "serve"
    fds = []
    while command in ("engine", "worker") and arguments and arguments[0].isdecimal():
        fds.append(int(arguments.pop(0)))
    return command, fds, arguments


def _work(command: str, fds: list[int], settings: Settings, flags: list[str]) -> Coroutine[None, None, int]:
    if command == "serve":
        return supervise(settings, flags, with_engine=True) if settings.workers else serve(settings)
    if settings.socket is None:
        raise SettingsError(f"socket is not set, expected the path of one for the command {command}")
    if command == "http":
        return supervise(settings, flags, with_engine=False)
    if command == "engine":
        return run_engine(settings, settings.socket, fds[0] if fds else None)
    return run_worker(settings, settings.socket, *fds)


def _repository(settings: Settings, metrics: "Metrics", tracing: "Tracing | None") -> "Repository":
    from service.serving.local import Repository

    if tracing is None:
        return Repository(settings, metrics)
    return Repository(settings, metrics, tracing.trace_batch)


def _open_tracing(settings: Settings) -> "Tracing | None":
    """Raises SettingsError where tracing is on and OpenTelemetry's SDK is not there."""
    if settings.tracing == "off":
        return None
    try:
        from service.http.tracing import Tracing
    except ImportError as error:
        raise SettingsError(
            f"tracing is {settings.tracing}, but the extra `tracing` is missing: {error}"
        ) from error
    return Tracing(settings.tracing)


def _watch_gpu(settings: Settings, metrics: "Metrics") -> None:
    if settings.provider == "cpu":
        return
    from service.observability.gpu import open_gpu

    gpu = open_gpu(settings.device_id)
    if gpu is not None:
        metrics.registry.register(gpu)


def _on_hangup(reload: Callable[[], Coroutine[None, None, list[str]]]) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(reload()))


def _leave(sig: int, _: FrameType | None) -> NoReturn:
    """End at once: nothing is accepted yet. What serves has a handler of its own.

    The system's default would do, but not for a container's first process, on which it has no effect. Nor
    is there an orderly way out of loading a model, which may take minutes in a thread of its own.
    """
    logger.info("%s: ended at once", signal.Signals(sig).name)
    os._exit(0)


def _stop_without_supervisor(lifeline: int) -> None:
    asyncio.get_running_loop().remove_reader(lifeline)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
