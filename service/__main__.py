"""The command `python -m service`: settings, models, HTTP server, and an end that loses nothing."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop

from service.app import create_app
from service.errors import InkserveError, SettingsError
from service.logs import configure_logging
from service.metrics import Metrics
from service.repository import Repository
from service.server import Server, log_ready
from service.settings import Settings, load_settings

logger = logging.getLogger("inkserve")


async def serve(settings: Settings) -> None:
    """Load the models, serve until a signal, answer what was accepted.

    Raises RepositoryError or EngineError where a model cannot be served.
    """
    metrics = Metrics()
    repository = Repository(settings, metrics)
    await repository.start()
    app = create_app(repository, settings, metrics)
    server = Server(app, settings, repository.stop_being_ready, log_ready)
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
