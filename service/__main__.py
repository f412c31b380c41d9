"""The command `python -m service`: settings, models, HTTP server, and an end that loses nothing."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
import uvloop

from service.app import create_app
from service.errors import InkserveError, SettingsError
from service.logs import configure_logging
from service.metrics import Metrics
from service.repository import Repository
from service.settings import Settings, load_settings

logger = logging.getLogger("inkserve")

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s that common proxies keep idle connections, so that it is they who close them."""


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM first makes the service unready and then, after `drain_seconds`, stops it."""

    def __init__(self, config: uvicorn.Config, repository: Repository, drain_seconds: float) -> None:
        super().__init__(config)
        self._repository = repository
        self._drain_seconds = drain_seconds
        self._loop = asyncio.get_running_loop()
        self._stopping = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop at the first signal; at the second, stop at once."""
        del frame
        if self._stopping:
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        logger.info("%s: unready, stopping in %g s", signal.Signals(sig).name, self._drain_seconds)
        self._repository.stop_being_ready()
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_seconds, self._stop)

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen, and say where."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            logger.info("ready at http://%s:%d, documentation at /docs", host, port)

    def _stop(self) -> None:
        self.should_exit = True


async def serve(settings: Settings) -> None:
    """Load the models, serve until a signal, answer what was accepted.

    Raises RepositoryError or EngineError where a model cannot be served.
    """
    metrics = Metrics()
    repository = Repository(settings, metrics)
    await repository.start()
    config = uvicorn.Config(
        create_app(repository, settings, metrics),
        host=settings.host,
        port=settings.port,
        http="httptools",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=settings.access_log,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.shutdown_timeout_seconds),
    )
    server = Server(config, repository, settings.drain_seconds)
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGHUP, lambda: asyncio.ensure_future(repository.reload())
    )
    await server.serve()
    await repository.close()
    logger.info("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service; returns the process's exit code: 0, 1 if it cannot serve, 2 for bad settings."""
    try:
        settings = load_settings(sys.argv[1:] if arguments is None else arguments)
    except SettingsError as error:
        print(f"inkserve: {error}", file=sys.stderr)
        return 2
    configure_logging(settings)
    try:
        uvloop.run(serve(settings))
    except InkserveError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
