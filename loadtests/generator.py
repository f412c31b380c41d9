"""An open-loop load generator: it sends requests at random times, whether earlier ones were answered or not.

Arrivals are a Poisson process, and a latency counts from the time at which its request was due, so that a
stalled server cannot slow down the clock that measures it (coordinated omission). One thread on epoll,
without
asyncio: this takes half the CPU time per request, and wakes to the microsecond instead of the millisecond.
"""

import errno
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BUFFER_BYTES = 1 << 16
END_OF_HEAD = b"\r\n\r\n"
LENGTH = b"content-length:"

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What to send. rate: requests per second; None for a closed loop, as fast as `connections` allow.

    connections: maximum at one time; a request that finds none free waits for one, and is late.
    patience_seconds: how long to wait for responses after the last request was due.
    """

    port: int
    request: bytes
    rate: float | None
    seconds: float
    connections: int
    patience_seconds: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """The result of every request, in the order in which they were due.

    due, sent, done: (requests,) seconds from the start; sent and done are NaN if it did not happen.
    waited: whether every connection was busy when it was due. status: the HTTP status, 0 for none.
    connections: maximum open at a time. cpu_share: the fraction of one core that the generator used.
    """

    due: Seconds
    sent: Seconds
    done: Seconds
    waited: NDArray[np.bool_]
    status: NDArray[np.int16]
    seconds: float
    connections: int
    cpu_share: float


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    request: int = -1
    answer: bytearray = field(default_factory=bytearray)
    unsent: memoryview | None = None


def generate(plan: Plan) -> Outcome:
    """Send the plan's requests and wait for their responses; blocks."""
    return _Generator(plan).run()


def arrivals(rate: float, seconds: float, seed: int) -> Seconds:
    """The times, in 0..seconds, of a Poisson process with `rate` events per second."""
    random = np.random.default_rng(seed)
    count = random.poisson(rate * seconds)
    return np.sort(random.uniform(0, seconds, count))  # given their number, the times are uniform


class _Generator:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._due: list[float] = []
        self._sent: list[float] = []
        self._done: list[float] = []
        self._waited: list[bool] = []
        self._status: list[int] = []
        self._free: list[_Connection] = []
        self._waiting: deque[int] = deque()
        self._by_descriptor: dict[int, _Connection] = {}
        self._in_flight = 0
        self._most = 0
        self._epoll = select.epoll()
        self._started = 0.0

    def run(self) -> Outcome:
        plan = self._plan
        if plan.rate is None:
            due = [0.0] * plan.connections
        else:
            due = arrivals(plan.rate, plan.seconds, plan.seed).tolist()
        cpu_started = time.process_time()
        self._started = time.perf_counter()
        try:
            self._drive(due)
        finally:
            for connection in self._by_descriptor.values():
                connection.socket.close()
            self._epoll.close()
        elapsed = self._now()
        return Outcome(
            np.array(self._due),
            np.array(self._sent),
            np.array(self._done),
            np.array(self._waited, np.bool_),
            np.array(self._status, np.int16),
            plan.seconds,
            self._most,
            (time.process_time() - cpu_started) / elapsed,
        )

    def _drive(self, due: list[float]) -> None:
        """Send requests when they are due, read responses, and sleep in between."""
        end = self._plan.seconds
        give_up = end + self._plan.patience_seconds
        following = 0
        while (now := self._now()) < give_up:
            while following < len(due) and due[following] <= now:
                self._arrive(due[following])
                following += 1
            if following == len(due) and not self._in_flight and not self._waiting:
                return
            wake = due[following] if following < len(due) else give_up
            self._wait(wake - self._now())

    def _wait(self, seconds: float) -> None:
        # epoll counts in milliseconds, select in microseconds, and select accepts an epoll.
        if seconds > 0:
            select.select([self._epoll], [], [], seconds)
        for descriptor, event in self._epoll.poll(0):
            connection = self._by_descriptor[descriptor]
            if event & select.EPOLLOUT:
                self._send_rest(connection)
            if event & ~select.EPOLLOUT:
                self._receive(connection)

    def _arrive(self, due: float) -> None:
        """Send a request that is due: over a free connection, a new one, or the next that becomes free."""
        request = len(self._due)
        self._due.append(due)
        self._sent.append(np.nan)
        self._done.append(np.nan)
        self._waited.append(False)
        self._status.append(0)
        if self._free:
            self._send(self._free.pop(), request)
        elif len(self._by_descriptor) < self._plan.connections:
            self._send_on_new(request)
        else:
            self._waited[request] = True
            self._waiting.append(request)

    def _send_on_new(self, request: int) -> None:
        """Connect without waiting, so that a server that accepts late delays only its own requests."""
        stream = socket.socket()
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if stream.connect_ex(("127.0.0.1", self._plan.port)) not in (0, errno.EINPROGRESS):
            stream.close()
            return  # counts as failed, like any request without a response
        self._by_descriptor[stream.fileno()] = _Connection(
            stream, request, unsent=memoryview(self._plan.request)
        )
        self._epoll.register(stream.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self._most = max(self._most, len(self._by_descriptor))
        self._sent[request] = self._now()
        self._in_flight += 1

    def _send(self, connection: _Connection, request: int) -> None:
        connection.request = request
        self._sent[request] = self._now()
        self._in_flight += 1
        try:
            count = connection.socket.send(self._plan.request)
        except BlockingIOError:
            count = 0
        except OSError:
            self._drop(connection)
            return
        if count < len(self._plan.request):
            connection.unsent = memoryview(self._plan.request)[count:]
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, connection: _Connection) -> None:
        if connection.unsent is None:
            return
        try:
            count = connection.socket.send(connection.unsent)
        except OSError:
            return  # if the connection is broken, receiving fails too and drops it
        connection.unsent = connection.unsent[count:] if count < len(connection.unsent) else None
        if connection.unsent is None:
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        try:
            part = connection.socket.recv(BUFFER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._drop(connection)
            return
        connection.answer += part
        if _is_whole(connection.answer):
            self._finish(connection)

    def _finish(self, connection: _Connection) -> None:
        now = self._now()
        self._done[connection.request] = now
        self._status[connection.request] = int(connection.answer[9:12])
        self._in_flight -= 1
        connection.request = -1
        closing = b"connection: close" in connection.answer.lower()
        connection.answer.clear()
        if closing:
            self._drop(connection)
        elif self._plan.rate is None and now < self._plan.seconds:
            self._free.append(connection)
            self._arrive(now)
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def _drop(self, connection: _Connection) -> None:
        """Forget a connection that broke or was closed; its request stays without a response."""
        if connection.request >= 0:
            self._in_flight -= 1
        elif connection in self._free:
            self._free.remove(connection)
        del self._by_descriptor[connection.socket.fileno()]
        connection.socket.close()
        if self._waiting:
            self._send_on_new(self._waiting.popleft())

    def _now(self) -> float:
        return time.perf_counter() - self._started


def _is_whole(answer: bytearray) -> bool:
    """Whether a response has arrived completely. Raises ValueError if it has no Content-Length."""
    end = answer.find(END_OF_HEAD)
    if end < 0:
        return False
    head = answer[:end].lower()
    at = head.find(LENGTH)
    if at < 0:
        raise ValueError(f"a response has no Content-Length: {bytes(head)!r}")
    stop = head.find(b"\r\n", at)
    length = int(head[at + len(LENGTH) : stop if stop > 0 else end])
    return len(answer) >= end + len(END_OF_HEAD) + length
