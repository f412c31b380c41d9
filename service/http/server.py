"""The HTTP server: uvicorn, with a shutdown that loses nothing. Knows nothing of models."""

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from service.http.fast.endpoint import FastPath
from service.http.fast.protocol import FastPathProtocol
from service.http.types import App
from service.settings import Settings

logger = logging.getLogger("inkserve")

ACCEPTED_PER_ITERATION = 128
"""uvloop accepts one connection per iteration of the event loop, and an iteration may hold a batch: of 1,000
that came at once, the last waited 3 s. Up to this many more, at 16 us each, are accepted per iteration."""

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s that common proxies keep idle connections, so that the proxies close them."""


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM first makes the service unready and then, after `drain_seconds`, stops it.

    unready: called at the first signal.
    listening: called with the listener once it listens.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        unready: Callable[[], None],
        listening: Callable[[socket.socket], None],
    ) -> None:
        super().__init__(_config(app, settings, getattr(app, "fast_path", None)))
        self._unready = unready
        self._listening = listening
        self._drain_seconds = settings.drain_seconds
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._acceptor: _Acceptor | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop at the first signal; at the second, stop at once."""
        del frame
        if self._stopping:
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        logger.info("%s: unready, stopping in %g s", signal.Signals(sig).name, self._drain_seconds)
        self._unready()
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_seconds, self._stop)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and report the socket."""
        await super().startup(sockets)
        if self.started:
            listener = self.servers[0].sockets[0]
            if sockets is None:  # a shared listener must leave connections to the other workers
                self._acceptor = self._accept_more(listener)
            self._listening(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; connections that were accepted a moment ago are also closed cleanly."""
        if self._acceptor is not None:
            await self._acceptor.close()
        await super().shutdown(sockets)

    def _accept_more(self, listener: socket.socket) -> "_Acceptor":
        """Accept more than one connection per iteration of the event loop."""
        make: Callable[[], asyncio.Protocol] = partial(
            self.config.http_protocol_class,  # type: ignore[call-arg]  # its class does not declare its parameters
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        return _Acceptor(listener, make)

    def _stop(self) -> None:
        self.should_exit = True


class _Acceptor:
    """Accepts all connections pending on the listener, in addition to uvloop's own server."""

    def __init__(self, listener: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        self._listener.setblocking(False)
        self._make = make
        self._connecting: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_PER_ITERATION):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # none left; uvloop's own server hits any other error too, and reports it
                return
            task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def close(self) -> None:
        """Accept no more, and wait until every accepted connection is set up."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        if self._connecting:
            await asyncio.wait(self._connecting)


def log_ready(listener: socket.socket) -> None:
    """Log the address of the service."""
    host, port = listener.getsockname()[:2]
    logger.info("ready at http://%s:%d, documentation at /docs", host, port)


def _config(app: App, settings: Settings, fast_path: FastPath | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(FastPathProtocol, fast_path),  # type: ignore[arg-type]  # it is only ever called
        proxy_headers=False,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # `service.http.lifecycle` writes its own, with the request's id
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_seconds),  # uvicorn wants whole seconds
    )
