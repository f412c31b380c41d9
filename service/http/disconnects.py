"""Cancels the work of clients that have disconnected."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from service.http.types import Receive

T = TypeVar("T")

DISCONNECT_TICK_SECONDS = 0.05
"""Shorter requests are not watched for a client disconnect."""


class ClientDisconnected(Exception):
    """The client disconnected before it had its response."""


class DisconnectWatch:
    """Cancels the work of clients that have disconnected, if it takes longer than a tick.

    A timer and a task per request would cost more than everything else about a small one.
    """

    def __init__(self, tick_seconds: float = DISCONNECT_TICK_SECONDS) -> None:
        self._tick_seconds = tick_seconds
        self._new: set[_Guarded] = set()
        self._waited: set[_Guarded] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def guard(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """Await the work, but cancel it when the client disconnects; then raises ClientDisconnected.

        The body must have been read: the next message from `receive` is then the disconnect.
        """
        guarded = _Guarded(receive, asyncio.current_task())
        self._new.add(guarded)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        try:
            return await work
        except asyncio.CancelledError:
            if guarded.disconnected and guarded.task is not None and not guarded.task.uncancel():
                raise ClientDisconnected from None
            raise
        finally:
            self._new.discard(guarded)
            self._waited.discard(guarded)
            if guarded.watcher is not None:
                guarded.watcher.cancel()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        for guarded in self._waited:
            if guarded.watcher is None:
                guarded.watcher = loop.create_task(guarded.watch())
        self._waited |= self._new
        self._new.clear()
        self._timer = loop.call_later(self._tick_seconds, self._tick) if self._waited else None


@dataclass(slots=True, eq=False)
class _Guarded:
    """A request in progress. disconnected: whether its client has disconnected."""

    receive: Receive
    task: "asyncio.Task[Any] | None"
    watcher: "asyncio.Task[None] | None" = None
    disconnected: bool = False

    async def watch(self) -> None:
        """Cancel the request's task when its client disconnects."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        if self.task is not None:
            self.task.cancel()
