"""SIGTERM under keep-alive load, in many short lives: what happens to the requests that were in flight."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from loadtests.chaos.client import Connection, Hung, Lost
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import Subject, running
from loadtests.chaos.verdicts import Figure, Row
from loadtests.progress import say

LIVES = 100
CLIENTS = 32
FRESH_CLIENTS = 8
"""This many of them open a connection for each request, so that some are accepted in the last moment."""

HUNG_SECONDS = 10.0
GRACE_SECONDS = 30.0
"""The default of --shutdown-timeout-seconds."""

DRAIN_SECONDS = 0.3
"""Every fourth life of inkserve drains for this long first: its clients are told to leave."""

LOADED_SECONDS = (0.05, 0.25)

Fate = Literal["answered", "unanswered", "too late", "never accepted", "refused", "hung", "error status"]


def stops(context: Context) -> Iterator[Row]:
    """End many lives under load, and count the fates of their requests."""
    random = context.random("stops")
    lives = context.count(LIVES, 3)
    fates: Counter[Fate] = Counter()
    bad_exits, slowest = 0, 0.0
    for number in range(lives):  # one at a time: two would share the clients' cores, and load neither
        end = _one_life(context.subject, number, random.uniform(*LOADED_SECONDS))
        fates.update(end.fates)
        bad_exits += end.code != 0
        slowest = max(slowest, end.seconds)
        if number % 10 == 9:
            say(f"    {number + 1} of {lives} lives: {dict(fates)}, {bad_exits} bad exits")
    figures: dict[str, Figure] = {
        "lives": lives,
        "answered": fates["answered"],
        "unanswered": fates["unanswered"],
        "hung": fates["hung"],
        "error statuses": fates["error status"],
        "sent after the close": fates["too late"],
        "never accepted": fates["never accepted"],
        "exits other than 0": bad_exits,
        "slowest stop s": slowest,
    }
    bars = {"unanswered": 0, "hung": 0, "exits other than 0": 0, "slowest stop s": GRACE_SECONDS}
    yield Row("SIGTERM under load", context.subject.name, figures, bars)


@dataclass(frozen=True)
class _End:
    """How a life ended. seconds: from SIGTERM to the exit, without the drain."""

    code: int
    seconds: float
    fates: "Counter[Fate]"


def _one_life(subject: Subject, number: int, loaded_seconds: float) -> _End:
    """Start a server, load it, and end it."""
    drain = DRAIN_SECONDS if subject.ours and number % 4 == 3 else 0.0
    flags = ["--drain-seconds", str(drain)] if subject.ours else []
    with running(subject, flags=flags) as run:
        process = run.server.process
        with _hurried():
            crowd = _Crowd(run.port, subject.request(1))
            crowd.load(loaded_seconds)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            crowd.load(GRACE_SECONDS + HUNG_SECONDS)
        try:
            code = process.wait(max(0.1, started + GRACE_SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = -1
        seconds = time.monotonic() - started
    return _End(code, seconds - drain, crowd.fates)


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """Raise the harness's priority, if the system permits: clients that wait for a core send too late."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


@dataclass(eq=False)
class _Client:
    """One client of the crowd. fresh: whether it opens a connection for each request."""

    fresh: bool
    connection: Connection | None = None
    answers: int = 0
    sent: "Sent | None" = None


class _Crowd:
    """Clients that each have one request in flight, until the port is closed.

    All in one thread on epoll: the next request is sent within microseconds of a response, so that requests
    are in flight when the signal comes. Threads would wait for each other.
    """

    def __init__(self, port: int, request: bytes) -> None:
        self.fates: Counter[Fate] = Counter()
        self._port, self._request = port, request
        self._selector = selectors.DefaultSelector()
        self._clients = {_Client(fresh=number < FRESH_CLIENTS) for number in range(CLIENTS)}
        for client in list(self._clients):
            self._send(client)

    def load(self, seconds: float) -> None:
        """Keep it up for so long, or until no client is left."""
        deadline = time.monotonic() + seconds
        while self._clients and (now := time.monotonic()) < deadline:
            for key, _ in self._selector.select(min(0.5, deadline - now)):
                self._read(key.data)
            for client in list(self._clients):
                if client.sent is not None and time.monotonic() - client.sent.when > HUNG_SECONDS:
                    self._done(client, "hung", keep=False)

    def _send(self, client: _Client) -> None:
        """Send the client's next request, on a new connection if it has none."""
        while True:
            if client.connection is None:
                try:
                    client.connection = Connection(self._port, HUNG_SECONDS)
                except OSError:
                    self.fates["refused"] += 1
                    self._clients.discard(client)
                    return
                client.answers = 0
                self._selector.register(client.connection.socket, selectors.EVENT_READ, client)
            client.sent = send(client.connection, self._request)
            if client.sent.complete:
                return
            self.fates["too late"] += 1
            self._leave(client)

    def _read(self, client: _Client) -> None:
        connection, sent = client.connection, client.sent
        assert connection is not None
        assert sent is not None
        try:
            answer = connection.poll()
        except (Lost, Hung) as error:
            lost = error if isinstance(error, Lost) else Lost(reset=True, partial=True)
            self._done(client, fate_of(lost, connection, self._request, sent, client.answers), keep=False)
            return
        if answer is not None:
            client.answers += 1
            fate: Fate = "answered" if answer.status == 200 else "error status"
            self._done(client, fate, keep=not answer.close and not client.fresh)

    def _done(self, client: _Client, fate: Fate, *, keep: bool) -> None:
        self.fates[fate] += 1
        if not keep:
            self._leave(client)
        self._send(client)

    def _leave(self, client: _Client) -> None:
        assert client.connection is not None
        self._selector.unregister(client.connection.socket)
        client.connection.close()
        client.connection = None


@dataclass(frozen=True)
class Sent:
    """What was known of a connection when a request was sent on it.

    when: on the monotonic clock. complete: whether all of it was sent. established: whether the connection
    was, before and after. acknowledged: the bytes that the server's kernel had taken before.
    """

    when: float
    complete: bool
    established: bool
    acknowledged: int


def send(connection: Connection, request: bytes) -> Sent:
    """Send a request."""
    established, acknowledged = connection.established(), connection.acknowledged()
    try:
        connection.socket.sendall(request)
        complete = True
    except OSError:
        complete = False
    established = established and connection.established()
    return Sent(time.monotonic(), complete, established, acknowledged)


def fate_of(lost: Lost, connection: Connection, request: bytes, sent: Sent, answers: int) -> Fate:
    """The fate of a request whose connection ended before its response.

    answers: how many the connection has had. A request is owed a response if the server's kernel took it
    before the process closed the connection. That is so if it acknowledged the bytes, which it never does
    after a close. It is also so if the connection was established before and after they were sent, because
    this machine's loopback delivers at once. If the connection never had a response and is reset, the kernel
    had completed it in the backlog, and no process saw it.
    """
    if lost.partial:
        return "unanswered"
    taken = connection.acknowledged() - sent.acknowledged >= len(request)
    if not sent.established and not taken:
        return "too late"
    return "never accepted" if lost.reset and not answers else "unanswered"
