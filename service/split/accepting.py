"""Accepts the connections on a Unix socket, with the descriptors that come with a connection's first bytes.

The event loop's own servers lose them: transports read no ancillary data. Knows nothing of frames.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence

from service.errors import FrameError

logger = logging.getLogger(__name__)

FIRST_BYTES = 64 * 1024
"""What is read before the transport takes over."""

PAUSE_SECONDS = 1.0
"""Before the next try, if the system is out of descriptors or memory; as asyncio's servers."""

Begin = Callable[[bytes, Sequence[int]], asyncio.Protocol]
"""Returns the protocol of a connection with these first bytes and descriptors, which are closed afterwards.
Raises FrameError to close the connection. If no transport can be made, the protocol's `connection_lost` is
called without `connection_made`."""


class Acceptor:
    """Accepts connections until it is closed.

    listener: listens, and does not block. begin: called with a connection's first bytes.
    """

    def __init__(self, listener: socket.socket, begin: Begin) -> None:
        self._listener = listener
        self._begin = begin
        self._loop = asyncio.get_running_loop()
        self._silent: set[socket.socket] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    async def close(self) -> None:
        """Accept no more, and close the connections that have sent nothing yet."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:  # or it is closed already
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for connection in self._silent:
            self._loop.remove_reader(connection)
            connection.close()
        self._silent.clear()
        await asyncio.gather(*self._opening)

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.error("no connection between processes can be accepted: %s", error)
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._listen)
            return
        connection.setblocking(False)
        self._silent.add(connection)
        self._loop.add_reader(connection, self._receive, connection)

    def _receive(self, connection: socket.socket) -> None:
        """Handle a connection's first bytes, or its end."""
        self._silent.discard(connection)
        self._loop.remove_reader(connection)
        try:
            protocol = self._begun(connection)
        except (OSError, FrameError) as error:
            logger.error("a connection between processes is closed: %s", error)
            protocol = None
        if protocol is None:
            connection.close()
            return
        task = self._loop.create_task(self._open(protocol, connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _begun(self, connection: socket.socket) -> asyncio.Protocol | None:
        """Return the protocol of a connection, or None if its peer has gone. Raises OSError, FrameError."""
        data, fds, _, _ = socket.recv_fds(connection, FIRST_BYTES, 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        try:
            return self._begin(data, fds) if data else None
        finally:
            for fd in fds:
                os.close(fd)

    async def _open(self, protocol: asyncio.Protocol, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:
            logger.error("a connection between processes is closed: %s", error)
            connection.close()
            protocol.connection_lost(error)
