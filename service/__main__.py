"""The command `python -m service [serve | http | engine | ping] [flags]`.

serve: the whole service; with `--workers N`, split into N HTTP workers and an engine process.
http, engine: the halves of a split service on their own, for containers that share `--socket`.
ping SOCKET: check that the engine behind a Unix socket responds, for exec probes.
(worker: one HTTP worker; `serve` and `http` start it.)

Nothing is imported before the command is known: a ping takes less time than importing pydantic.
"""

import os
import sys

TYPE_CHECKING = False  # typing takes 3 ms to import, in which SIGHUP would still kill the process
if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from types import FrameType
    from typing import NoReturn

    from service.hangups import Hangups
    from service.settings import Settings

SWITCH_SECONDS = 0.0005
"""How long the event loop may hold the GIL while a device thread has a result ready. Python's own
5 ms is as long as a batch takes: the MLP took 157 us of wall time per row with the default, 126 with this."""

COMMANDS = ("serve", "http", "engine", "worker")


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run a command; returns the process's exit code: 0, 1 if it cannot serve, 2 for bad settings."""
    _open_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["ping"]:
        from service.split import ping

        return ping.main(given[1:])
    return _run(*_split(given))


def _run(command: str, fds: list[int], flags: list[str]) -> int:
    import signal

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return _serve(command, fds, flags)
    finally:
        signal.signal(signal.SIGHUP, before)


def _serve(command: str, fds: list[int], flags: list[str]) -> int:
    from service.hangups import Hangups

    hangups = Hangups()
    hangups.install()
    import contextlib
    import logging
    import signal

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anything imports onnxruntime
    # Before anything imports grpc: its C core would log each client's failed TLS handshake, not as our lines.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Before anything imports numpy: nothing here is worth threading BLAS for, and its threads spin for 20 ms
    # of CPU time before they first sleep.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import uvloop

    from service.errors import InkserveError, SettingsError
    from service.memory import disable_gc, keep_end_of_heap, map_large_blocks
    from service.observability.logs import configure_logging
    from service.settings import deprecations, load_settings

    try:
        settings = load_settings(flags)
        work = _work(command, fds, settings, flags, hangups)
    except SettingsError as error:
        with contextlib.suppress(OSError):  # stderr may be full or broken
            print(f"inkserve: {error}", file=sys.stderr)
        return 2
    log = configure_logging(settings)
    logger = logging.getLogger("inkserve")
    if not fds:  # with `fds`, the supervisor has warned about these flags already
        for warning in deprecations(flags):
            logger.warning("%s", warning)
    sys.setswitchinterval(SWITCH_SECONDS)
    before = signal.signal(signal.SIGTERM, _exit_at_once)
    disable_gc()
    map_large_blocks()
    keep_end_of_heap()
    try:
        return uvloop.run(work)
    except InkserveError as error:
        logger.error("%s", error)
        return 1
    except SystemExit as end:  # uvicorn's, with code 3, if the port cannot be bound
        return 1 if end.code else 0
    except Exception:  # the process's edge
        logger.critical("the service failed", exc_info=True)
        return 1
    finally:
        hangups.ignore()
        signal.signal(signal.SIGTERM, before)
        log.drain()


def _split(arguments: list[str]) -> tuple[str, list[int], list[str]]:
    """The command, the file descriptors that a supervisor passes on, and the flags."""
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "serve"
    fds = []
    while command in ("engine", "worker") and arguments and arguments[0].isdecimal():
        fds.append(int(arguments.pop(0)))
    return command, fds, arguments


def _work(
    command: str, fds: list[int], settings: "Settings", flags: list[str], hangups: "Hangups"
) -> "Coroutine[None, None, int]":
    from service import compose
    from service.errors import SettingsError

    if command == "serve":
        split = settings.workers > 0
        if split:
            return compose.supervise(settings, flags, hangups, with_engine=True)
        return compose.serve(settings, hangups)
    if settings.socket is None:
        raise SettingsError(f"socket is not set, expected a path for the command {command}")
    if command == "http":
        return compose.supervise(settings, flags, hangups, with_engine=False)
    if command == "engine":
        return compose.run_engine(settings, settings.socket, hangups, *fds)
    return compose.run_worker(settings, settings.socket, *fds)


def _exit_at_once(sig: int, _: "FrameType | None") -> "NoReturn":
    """Exit at once: no request is accepted yet. A running server has a handler of its own.

    The default action is not enough: it has no effect on PID 1, as in a container. An orderly exit would have
    to wait for the thread that loads a model, which may take minutes.
    """
    import logging
    import signal

    from service.observability.log_writer import LogWriter

    logging.getLogger("inkserve").info("%s: exiting at once", signal.Signals(sig).name)
    if isinstance(sys.stderr, LogWriter):
        sys.stderr.drain()
    os._exit(0)


def _open_standard_streams() -> None:
    """Open /dev/null on the standard descriptors that are closed.

    Otherwise a socket would get the number 1 or 2: log lines would go to a client, and libuv aborts.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is `fd`
            os.set_inheritable(opened, True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def run() -> "NoReturn":
    """Run the command of this process, and exit with its code.

    Until its first line SIGHUP kills the process, unless it was started with the signal ignored or blocked.

    A failed command exits without the interpreter's farewell: a thread that still opens or warms a model
    would end the process with a signal (SIGSEGV, SIGABRT) once the interpreter or CUDA's driver is gone.
    """
    import signal

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a default action would end the process during its exit
    code = main()
    if code:
        import contextlib
        import logging

        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
