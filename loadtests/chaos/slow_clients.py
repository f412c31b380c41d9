"""Five hundred slow clients: slow heads, slow bodies, slow readers. The others should not notice."""

import contextlib
import threading
import time
from collections.abc import Iterator

from loadtests.chaos import client
from loadtests.chaos.client import Connection
from loadtests.chaos.probe import failures, p99_ms, probing
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import Running, running
from loadtests.chaos.verdicts import Figure, Row, ratio

CLIENTS = 500
MOST = 2.0
RATE = 100.0
SECONDS = 8.0
ROUND_SECONDS = 0.5
"""Each slow client sends or reads a byte this often."""

APART_SECONDS = 0.004
"""Between two that come: slow clients are no burst, and a burst is another scenario."""

RECEIVE_BUFFER = 2048
ANSWERS_ASKED = 4
"""Requests that a slow reader pipelines, so that the responses do not fit into the buffers of both sides."""

SLOW_HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Slow: " + 4000 * b"a"


def slow_clients(context: Context) -> Iterator[Row]:
    """Measure one quick client without the slow ones, with them, and without them again."""
    seconds = context.seconds(SECONDS, 3)
    with running(context.subject) as run:
        request = run.subject.request(1)
        slow = _Slow(run, context.count(CLIENTS, 30))
        slow.warm_up()
        with probing(run.port, request, RATE) as probe:
            started = time.monotonic()
            time.sleep(seconds)
            with slow:
                begun = time.monotonic()
                time.sleep(seconds)
                ended = time.monotonic()
            time.sleep(seconds)
        idle = probe.between(started, begun - slow.setup_seconds) + probe.between(ended + 0.5, ended + 1e6)
        meanwhile = probe.between(begun - slow.setup_seconds, ended)
        alive = run.answers()
    figures: dict[str, Figure] = {
        "slow clients": slow.count,
        "reconnected": slow.reconnected,
        "idle p99 ms": p99_ms(idle),
        "p99 ms": p99_ms(meanwhile),
        "times idle": ratio(p99_ms(meanwhile), p99_ms(idle)),
        "failures of others": failures(meanwhile),
        "dead at the end": int(not alive),
    }
    bars = {"times idle": MOST, "failures of others": 0, "dead at the end": 0}
    yield Row("Slow clients", context.subject.name, figures, bars)


class _Slow:
    """The slow clients, as a context manager; those that the server closes come again."""

    def __init__(self, run: Running, count: int) -> None:
        self.count = count
        self.reconnected = 0
        self.setup_seconds = 0.0
        self._port = run.port
        request = run.subject.request(16)
        end = request.index(b"\r\n\r\n") + 4
        self._bodies = request[:end], request[end:]
        page = client.request("GET", "/openapi.json") if run.subject.ours else run.subject.request(64)
        self._page = page
        self._clients: list[Connection | None] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def warm_up(self) -> None:
        """Have the service make the page that the slow readers ask for: the first time takes 70 ms."""
        connection = Connection(self._port)
        connection.ask(self._page)
        connection.close()

    def __enter__(self) -> "_Slow":
        started = time.monotonic()
        for number in range(self.count):
            self._clients.append(self._connect(number))
            time.sleep(APART_SECONDS)
        self.setup_seconds = time.monotonic() - started
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for each in self._clients:
            if each is not None:
                each.close()

    def _connect(self, number: int) -> Connection | None:
        try:
            connection = Connection(self._port, 2, RECEIVE_BUFFER if number % 3 == 2 else None)
        except OSError:
            return None
        first = (SLOW_HEAD[:20], self._bodies[0], self._page * ANSWERS_ASKED)[number % 3]
        connection.socket.setblocking(False)
        with contextlib.suppress(OSError):
            connection.socket.send(first)
        return connection

    def _drip(self) -> None:
        step = 0
        while not self._ended.wait(ROUND_SECONDS):
            for number, connection in enumerate(self._clients):
                if connection is None or not self._one_byte(connection, number, step):
                    if connection is not None:
                        connection.close()
                    self.reconnected += 1
                    self._clients[number] = self._connect(number)
            step += 1

    def _one_byte(self, connection: Connection, number: int, step: int) -> bool:
        """Send or read a byte; return whether the connection still lives."""
        try:
            if number % 3 == 2:
                return connection.socket.recv(1) != b""
            source = (SLOW_HEAD[20:], self._bodies[1])[number % 3]
            connection.socket.send(source[step % len(source) :][:1])
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
