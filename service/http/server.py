"""The HTTP server: uvicorn, with a shutdown that loses nothing. Knows nothing of models."""

import asyncio
import errno
import logging
import math
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Protocol

import uvicorn

from service.addresses import open_listeners, ready_line
from service.http.changing_files import kept_current
from service.http.fast.connections import Connections, Limits
from service.http.fast.endpoint import FastPath
from service.http.fast.protocol import HttpProtocol
from service.http.lifecycle import Lifecycle
from service.http.tls import open_certificates, scheme
from service.http.types import Receive, Scope, Send
from service.settings import Settings

logger = logging.getLogger("inkserve")

ACCEPTED_PER_ITERATION = 32
"""uvloop accepts one connection per iteration of the event loop, and an iteration may hold a batch: of 1,000
that came at once, the last waited 3 s. Up to this many more, at 16 us each, are accepted per iteration. They
take four iterations until they count as open."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""Errors of accept() for which a connection must make room."""

FORCED_SECONDS = 0.1
"""How long a second signal may wait to be noticed; uvicorn looks as often."""

RESERVED_FILES = 256
"""File descriptors that are kept for everything but open connections: models, logs, the engine's socket, and
connections that are being opened and closed. At most half of all. If they ran out, libuv would reset
connections that wait for uvloop's own server."""


RPC_CONNECTIONS = 1024
"""The most connections that the gRPC server has open, if there is one. Each of them carries many calls."""


class Application(Protocol):
    """An ASGI application with a fast path; see `service.http.dispatch.Dispatch`."""

    @property
    def fast_path(self) -> FastPath | None:
        """The requests that never come to the application."""
        ...

    @property
    def lifecycle(self) -> Lifecycle:
        """What counts every request."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        ...


class Server(uvicorn.Server):
    """uvicorn, but SIGTERM first makes the service unready and then, after `drain_seconds`, stops it.

    From SIGTERM on, every response closes its connection.
    unready: called at the first signal.
    listening: called with the listener once it listens.
    stop_others: stops the servers of other protocols when the port closes, given the seconds that their
        requests in flight may take.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings,
        unready: Callable[[], None],
        listening: Callable[[socket.socket], None],
        stop_others: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        limits = Limits.of(settings)
        others = 0 if settings.grpc_port is None else RPC_CONNECTIONS
        limits = replace(limits, max_connections=_allowed(limits.max_connections, others))
        self._connections = Connections(limits, app.lifecycle.metrics)
        self._certificates = open_certificates(settings)
        tls = None if self._certificates is None else self._certificates.context
        super().__init__(_config(app, settings, self._connections, app.fast_path, tls))
        self._unready = unready
        self._listening = listening
        self._drain_seconds = settings.drain_seconds
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._host = settings.host
        self._stop_others = stop_others
        self._shutdown_seconds = settings.shutdown_timeout_seconds
        self._acceptors: list[_Acceptor] = []

    @property
    def stopping(self) -> bool:
        """Whether a signal has begun to stop it."""
        return self._stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop at the first signal; at the second, stop at once."""
        del frame
        if self._stopping:
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        logger.info("%s: unready, stopping in %g s", signal.Signals(sig).name, self._drain_seconds)
        self._connections.draining = True
        self._unready()
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_seconds, self._stop)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal; certificates are renewed meanwhile."""
        async with kept_current(self._certificates):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and report the first socket."""
        bound = open_listeners(self._host, self.config.port) if sockets is None else sockets
        await super().startup(bound)
        if self.started:
            listeners = [server.sockets[0] for server in self.servers]
            # A shared listener must leave connections to the other workers, until the service stops.
            make, always, tls = self._make_protocol(), sockets is None, self.config.ssl
            self._acceptors = [_Acceptor(each, make, self._connections, always, tls) for each in listeners]
            self._listening(listeners[0])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop. Connections that the kernel has completed are accepted and served first."""
        others = None
        if self._stop_others is not None:
            others = asyncio.ensure_future(self._stop_others(self._shutdown_seconds))
        for acceptor in self._acceptors:
            acceptor.empty_queue()
        if self._acceptors:
            for server in self.servers:
                server.close()
        for acceptor in self._acceptors:
            await acceptor.close()
        await super().shutdown(sockets)
        while others is not None and not others.done() and not self.force_exit:
            await asyncio.wait([others], timeout=FORCED_SECONDS)

    def _make_protocol(self) -> Callable[[], asyncio.Protocol]:
        return partial(
            self.config.http_protocol_class,  # type: ignore[call-arg]  # its class does not declare its parameters
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def _stop(self) -> None:
        self.should_exit = True


class _Acceptor:
    """Accepts all connections pending on the listener, in addition to uvloop's own server.

    always: otherwise only at the end.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        connections: Connections,
        always: bool,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        self._listener.setblocking(False)
        self._make = make
        self._connections = connections
        self._always = always
        self._tls = tls
        self._handshake_seconds = None if tls is None else connections.limits.head_timeout_seconds
        self._connecting: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        if always:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self, most: int = ACCEPTED_PER_ITERATION) -> None:
        """Accept what is pending, at most so many connections."""
        for _ in range(most):
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                # Connections that are still being set up cannot make room yet; a served one would have to.
                if error.errno in EXHAUSTED and (self._tls is not None or not self._connecting):
                    self._connections.make_room(os.strerror(error.errno))
                return
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make, connection, ssl=self._tls, ssl_handshake_timeout=self._handshake_seconds
            )
        except OSError as error:  # the client's: no TLS, a version or certificate that is not accepted
            logger.debug("a TLS handshake failed: %s", error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    def empty_queue(self) -> None:
        """Accept all that is pending, for the last time; the port must be closed at once."""
        if self._always:
            self._loop.remove_reader(self._listener)
        self._accept(sys.maxsize)
        self._listener.close()

    async def close(self) -> None:
        """Wait until every accepted connection is set up. Call it after `empty_queue`."""
        if self._connecting:
            await asyncio.wait(self._connecting)


def log_ready(listener: socket.socket, settings: Settings) -> None:
    """Log the address of the service."""
    line = ready_line(listener, settings.root_path, scheme(settings), playground=settings.playground)
    logger.info("%s", line)


def _allowed(connections: int, others: int) -> int:
    """Return how many of these connections the process may open, after raising its soft limit of descriptors.

    others: connections of other protocols, for which descriptors are reserved too. The soft limit is often
        1,024, for the sake of programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = RESERVED_FILES + others
    wanted = connections + reserved
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            most = max(soft - reserved, soft // 2)
            logger.info(
                "max_connections is %d, the limit of file descriptors %d: keeping at most %d connections",
                connections,
                soft,
                most,
            )
            return most
    return connections


def _config(
    app: Application,
    settings: Settings,
    connections: Connections,
    fast_path: FastPath | None,
    tls: ssl.SSLContext | None,
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        host=settings.host,
        port=settings.port,
        http=partial(HttpProtocol, connections, fast_path),  # type: ignore[arg-type]  # it is only ever called
        proxy_headers=False,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # `service.http.lifecycle` writes its own, with the request's id
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_seconds),  # uvicorn wants whole seconds
    )
