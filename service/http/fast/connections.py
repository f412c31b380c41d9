"""The open connections of a process, and the bounds on what they may take: number, memory and time.

One timer checks the deadlines of all connections; a timer per connection would be set again at each request.
"""

import asyncio
import logging
import math
import random
import select
import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Protocol

from service.observability.metrics import Closing, Metrics
from service.settings import Settings

logger = logging.getLogger("inkserve")

TICK_SECONDS = 0.25

LOG_SECONDS = 10.0
"""One log line per this many seconds sums up the connections that were refused, closed or malformed."""

POLLRDHUP = getattr(select, "POLLRDHUP", 0x2000)


@dataclass(frozen=True)
class Limits:
    """What the connections of a process may take. See the settings of the same names."""

    max_connections: int
    max_head_bytes: int
    max_buffered_bytes: int
    head_timeout_seconds: float
    request_timeout_seconds: float
    send_timeout_seconds: float
    keep_alive_seconds: float
    connection_max_age_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Return the limits that the settings set."""
        return cls(
            settings.max_connections,
            settings.max_head_bytes,
            settings.max_buffered_bytes,
            settings.head_timeout_seconds,
            settings.request_timeout_seconds,
            settings.send_timeout_seconds,
            settings.keep_alive_seconds,
            settings.connection_max_age_seconds,
        )


class Connection(Protocol):
    """What `Connections` asks of a connection.

    deadline: on the clock of `time.monotonic`, when `expire` must be called; inf for none.
    idle_since: when it became idle, or None if it has a request in flight.
    served: whether it has had a response.
    """

    deadline: float
    idle_since: float | None
    served: bool

    @property
    def in_flight(self) -> bool:
        """Whether a request to an inference route is being received or answered."""
        ...

    def expire(self, now: float) -> None:
        """Handle the deadline."""
        ...

    def fileno(self) -> int:
        """Return the socket's file descriptor, or -1 if it has none."""
        ...

    def has_bytes(self) -> bool:
        """Whether the client has sent bytes that the event loop has not read yet."""
        ...

    def close_now(self, why: Closing) -> None:
        """Close, without a response."""
        ...

    def abandon(self) -> None:
        """Give up the request in flight, because the client has disconnected."""
        ...


class Connections:
    """The open connections of a process. Lives on the event loop.

    draining: whether every response closes its connection.
    buffered: bytes of request bodies and unsent responses that the connections hold.
    deaf: connections that do not read, whose clients' leaving must be looked for.
    closed: connections that we closed, by reason, since the start.
    metrics: None if nobody collects them.
    """

    def __init__(
        self, limits: Limits, metrics: Metrics | None = None, tick_seconds: float = TICK_SECONDS
    ) -> None:
        self.limits = limits
        self._metrics = metrics
        if metrics is not None:
            metrics.watch_connections(lambda: len(self.open), self.in_flight)
        self.draining = False
        self.buffered = 0
        self.open: set[Connection] = set()
        self.deaf: set[Connection] = set()
        self.closed: Counter[Closing] = Counter()
        self._unlogged: Counter[Closing] = Counter()
        self._last_problem = ""
        self._logged_at = -math.inf
        self._tick_seconds = tick_seconds
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Connection) -> bool:
        """Add a connection; returns whether there is room for it.

        At the limit, the connections that have been idle for longest make room, those first that have never
        sent a request: a flood of silent connections must not lock out the probes.
        """
        if len(self.open) >= self.limits.max_connections and not self._evict():
            return False
        self.open.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        return True

    def closes_at(self, now: float) -> float:
        """Return the time from which a connection that begins now is closed with its next response.

        Random, so that connections that began together do not all reconnect together.
        """
        age = self.limits.connection_max_age_seconds
        return now + age * random.uniform(0.5, 1.0) if age else math.inf

    def discard(self, connection: Connection) -> None:
        """Remove a connection that has been closed."""
        self.open.discard(connection)
        self.deaf.discard(connection)

    def in_flight(self) -> int:
        """Return how many requests to the inference routes are being received or answered.

        Counted from the connections when asked: nothing is counted up and down, so no path that a request
        can leave by is able to leave it behind.
        """
        return sum(each.in_flight for each in self.open)

    def stop(self) -> None:
        """Check no more deadlines."""
        if self._timer is not None:
            self._timer.cancel()

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be buffered."""
        return self.buffered + size <= self.limits.max_buffered_bytes

    def count(self, why: Closing, problem: str = "") -> None:
        """Count a connection that we close. problem: what its client did, for the log."""
        self.closed[why] += 1
        if self._metrics is not None:
            self._metrics.count_closed(why)
        self._unlogged[why] += 1
        self._last_problem = problem or self._last_problem

    def make_room(self, problem: str) -> None:
        """Close idle connections, because the system could not accept another one."""
        if not self._evict():
            self.count("refused", problem)

    def _evict(self) -> bool:
        idle = [each for each in self.open if each.idle_since is not None]
        idle.sort(key=lambda each: (each.served, each.idle_since))
        evictable = (each for each in idle if not each.has_bytes())
        most = max(1, len(self.open) // 16)
        evicted = list(islice(evictable, 1))
        if evicted:  # a served connection makes room only where no other can
            served = evicted[0].served
            evicted += takewhile(lambda each: each.served == served, islice(evictable, most - 1))
        for each in evicted:
            each.close_now("evicted")
            self.discard(each)
        return bool(evicted)

    def _tick(self) -> None:
        now = time.monotonic()
        for connection in [each for each in self.open if each.deadline <= now]:
            connection.expire(now)
        if self.deaf:
            self._find_disconnected()
        if self._unlogged and now - self._logged_at >= LOG_SECONDS:
            self._log(now)
        loop = asyncio.get_running_loop()
        again = self.open or self._unlogged
        self._timer = loop.call_later(self._tick_seconds, self._tick) if again else None

    def _find_disconnected(self) -> None:
        """Close connections that do not read and whose clients have disconnected.

        A transport sees the end of a stream only where it reads, behind the bytes before it; the kernel tells
        it at once.
        """
        poll = select.poll()
        by_fd = {each.fileno(): each for each in self.deaf}
        by_fd.pop(-1, None)
        for fd in by_fd:
            poll.register(fd, POLLRDHUP)
        for fd, _ in poll.poll(0):
            by_fd[fd].abandon()

    def _log(self, now: float) -> None:
        counts = ", ".join(f"{count} {why}" for why, count in sorted(self._unlogged.items()))
        last = f"; the last: {self._last_problem}" if self._last_problem else ""
        logger.warning("connections closed: %s; %d are open%s", counts, len(self.open), last)
        self._unlogged.clear()
        self._last_problem = ""
        self._logged_at = now
