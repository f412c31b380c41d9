"""Answers HAProxy's agent checks: one line per connection with the weight that the service should have.

Follows `agent-check` in HAProxy's configuration manual. Knows nothing of HTTP.
"""

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable, Sequence
from typing import Literal

from service.observability.load import Load

logger = logging.getLogger("inkserve")

State = Literal["up", "draining", "down"]

HALF_UTILIZATION = 0.5
"""The utilization at which a service asks for half of its weight."""

FALL_SECONDS, RISE_SECONDS = 5.0, 20.0
"""Time constants by which the weight follows the utilization, which follows the weight: without them, pods
would take the load from each other in turns. The load is a mean of 5 s, so nothing quicker is known."""

FIRST_UTILIZATION = 0.7
"""Where the weight begins: a new pod must not get several times the share of those that are loaded."""

LEAST_PERCENT = 1
"""0 would drain the service, and nothing would tell when it has room again."""

PATIENCE_SECONDS = 5.0
"""How long a balancer may take to read its line and close the connection."""

MOST_CHECKS = 64
"""Open connections; further ones are closed unanswered. Each balancer has one at a time."""


def state_of(*, ready: bool, stopping: bool) -> State:
    """Return the state of a service that accepts new requests, or has begun to stop, or neither."""
    if stopping:
        return "draining"
    return "up" if ready else "down"


def percent_at(utilization: float) -> float:
    """Return the weight for a steady utilization, in percent: 100 / (1 + (utilization / 0.5) ** 2).

    It falls over all of the range, past 1 too, so that pods differ in weight whether the fleet has room or
    not. A steeper curve would make pods of different speed more equal, and would oscillate sooner.
    """
    return 100 / (1 + (utilization / HALF_UTILIZATION) ** 2)


class AgentWeight:
    """The weight that a service asks for, as it follows its load. now: seconds, on any steady clock."""

    def __init__(self, now: float) -> None:
        self._percent = percent_at(FIRST_UTILIZATION)
        self._at = now

    def update(self, load: Load, now: float) -> None:
        """Follow this load, which held since the last update."""
        wanted = percent_at(load.utilization)
        seconds = FALL_SECONDS if wanted < self._percent else RISE_SECONDS
        self._percent += (wanted - self._percent) * -math.expm1(-max(0.0, now - self._at) / seconds)
        self._at = now

    def line(self, state: State) -> bytes:
        """Return the answer to an agent check.

        Draining is a weight of 0, which has the effect of HAProxy's `drain`: that would outlive this process,
        until an agent on the same address said `ready`, which in turn would undo an operator's own `drain`.
        """
        if state == "down":
            return b"down #the service is not ready\n"
        percent = 0 if state == "draining" else max(LEAST_PERCENT, round(self._percent))
        return b"up %d%%\n" % percent


class AgentPort:
    """Answers agent checks on sockets that are bound already.

    state: whether requests are welcome; asked at each check.
    """

    def __init__(self, listeners: Sequence[socket.socket], state: Callable[[], State]) -> None:
        self._listeners = listeners
        self._state = state
        self._weight = AgentWeight(time.monotonic())
        self._servers: list[asyncio.Server] = []
        self._open = 0

    def update(self, load: Load) -> None:
        """Follow this load; see `AgentWeight.update`."""
        self._weight.update(load, time.monotonic())

    async def start(self) -> None:
        """Begin to answer."""
        for listener in self._listeners:
            self._servers.append(await asyncio.start_server(self._answer, sock=listener))
            host, port = listener.getsockname()[:2]
            logger.info("agent checks are answered at %s port %d", host, port)

    def close(self) -> None:
        """Close the port."""
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST_CHECKS:
                writer.write(self._weight.line(self._state()))
                writer.write_eof()
                # A balancer with `agent-send` sends a line: closing before it is read could reset the answer.
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while await reader.read(1024):
                        pass
        except (OSError, TimeoutError):  # the balancer's own affair
            pass
        finally:
            self._open -= 1
            with contextlib.suppress(OSError):
                writer.close()
