"""SIGTERM under keep-alive load, in many short lives: what happens to the requests that were in flight."""

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    request, ended = subject.request(1), threading.Event()
    fates: Counter[Fate] = Counter()
    with running(subject, flags=flags) as run, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(_client, run.port, request, n < FRESH_CLIENTS, ended) for n in range(CLIENTS)]
        time.sleep(loaded_seconds)
        started = time.monotonic()
        run.server.process.send_signal(signal.SIGTERM)
        try:
            code = run.server.process.wait(GRACE_SECONDS + 10)
        except subprocess.TimeoutExpired:
            code = -1
        seconds = time.monotonic() - started
        ended.set()
        for client in clients:
            fates.update(client.result())
    return _End(code, seconds - drain, fates)


def _client(port: int, request: bytes, fresh: bool, ended: threading.Event) -> "Counter[Fate]":
    """Send requests one after another until the port is closed."""
    fates: Counter[Fate] = Counter()
    connection: Connection | None = None
    answers = 0
    while not ended.is_set():
        if connection is None:
            answers = 0
            try:
                connection = Connection(port)
            except OSError:
                fates["refused"] += 1
                break
        fate, keep = ask(connection, request, answers)
        answers += 1
        fates[fate] += 1
        if fresh or not keep:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return fates


def ask(connection: Connection, request: bytes, answers: int) -> tuple[Fate, bool]:
    """Send a request; return its fate, and whether the connection can be used again.

    answers: how many the connection has had. A request is owed a response if the server's kernel took it
    before the process closed the connection. That is so if it acknowledged the bytes, which it never does
    after a close. It is also so if the connection was established before and after they were sent, because
    this machine's loopback delivers at once. If the connection never had a response and is reset, the kernel
    had completed it in the backlog, and no process saw it.
    """
    established, acknowledged = connection.established(), connection.acknowledged()
    try:
        connection.socket.sendall(request)
        established = established and connection.established()
        answer = connection.receive()
    except Hung:
        return "hung", False
    except (Lost, OSError) as lost:
        reset = isinstance(lost, Lost) and lost.reset
        if isinstance(lost, Lost) and lost.partial:
            return "unanswered", False
        if not established and connection.acknowledged() - acknowledged < len(request):
            return "too late", False
        return "never accepted" if reset and not answers else "unanswered", False
    return "answered" if answer.status == 200 else "error status", not answer.close
