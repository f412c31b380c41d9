"""Ten thousand clients that leave, each in one of several ways: what the service still holds afterwards."""

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from loadtests.chaos.client import Connection
from loadtests.chaos.proc import MB, Resources, gauge
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import Running, metrics_of, running
from loadtests.chaos.verdicts import Figure, Row

LEAVERS = 10_000
AT_ONCE = 24
ROWS = 32
SETTLE_SECONDS = 10.0
SPARE_DESCRIPTORS = 2
"""The scrape's own connection, and one that is being closed."""

GAUGES = {"rows waiting": "inkserve_rows_waiting", "requests waiting": "inkserve_requests_waiting"}
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST."""

Leave = Callable[[socket.socket, bytes, random.Random], None]


def leavers(context: Context) -> Iterator[Row]:
    """Let clients leave, wait for the service to notice, and count what is left of them."""
    count = context.count(LEAVERS, 100)
    with running(context.subject) as run:
        resources = Resources(run.server.processes())
        _leave_all(
            run, max(50, count // 20), 1
        )  # threads, caches and arenas are there before they are counted
        _settle(run, resources, 0)
        before, memory, threads = resources.descriptors(), resources.rss(), resources.threads()
        _leave_all(run, count, 2)
        seconds, gauges = _settle(run, resources, before)
        figures: dict[str, Figure] = {
            "clients": count,
            **gauges,
            "descriptors left": max(0, resources.descriptors() - before - SPARE_DESCRIPTORS),
            "threads left": max(0, resources.threads() - threads),
            "settled after s": seconds,
            "MB grown": (resources.rss() - memory) / MB,
            "dead at the end": int(not run.answers()),
        }
    bars = {**dict.fromkeys(gauges, 0.0), "descriptors left": 0, "dead at the end": 0}
    if context.subject.ours:  # a peer's thread pool may grow as it is used
        bars["threads left"] = 0
    yield Row("Clients that leave", context.subject.name, figures, bars)


def _leave_all(run: Running, count: int, seed: int) -> None:
    chance = random.Random(seed)
    request = run.subject.request(ROWS)
    ways = [chance.choice(WAYS) for _ in range(count)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda way: _leave(run.port, request, way, chance), ways):
            pass


def _leave(port: int, request: bytes, way: Leave, chance: random.Random) -> None:
    try:
        connection = Connection(port, timeout_seconds=2)
    except OSError:  # the backlog is full: this client has left already
        return
    try:
        way(connection.socket, request, chance)
    except OSError:  # the server closed first
        pass
    finally:
        connection.close()


def _settle(run: Running, resources: Resources, descriptors: int) -> tuple[float, dict[str, Figure]]:
    """Wait until nothing is left, or for long enough; return how long, and the gauges."""
    started = time.monotonic()
    while True:
        gauges = _gauges(run)
        left = resources.descriptors() > descriptors + SPARE_DESCRIPTORS or any(gauges.values())
        elapsed = time.monotonic() - started
        if not left or elapsed > (SETTLE_SECONDS if descriptors else 1):
            return elapsed, gauges
        time.sleep(0.05)


def _gauges(run: Running) -> dict[str, Figure]:
    if not run.subject.ours:
        return {}
    text = metrics_of(run.port)
    return {name: gauge(text, metric) for name, metric in GAUGES.items()}


def _after_all(client: socket.socket, request: bytes, _: random.Random) -> None:
    client.sendall(request)


def _by_reset(client: socket.socket, request: bytes, _: random.Random) -> None:
    client.sendall(request)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def _with_a_byte_too_many(client: socket.socket, request: bytes, _: random.Random) -> None:
    client.sendall(request + b"\r")


def _with_another_begun(client: socket.socket, request: bytes, _: random.Random) -> None:
    client.sendall(request + request[: len(request) // 2])


def _in_the_middle(client: socket.socket, request: bytes, chance: random.Random) -> None:
    client.sendall(request[: chance.randrange(1, len(request))])


def _in_the_head(client: socket.socket, request: bytes, chance: random.Random) -> None:
    client.sendall(request[: chance.randrange(1, request.index(b"\r\n\r\n"))])


def _at_once(client: socket.socket, request: bytes, _: random.Random) -> None:
    del client, request


def _in_the_response(client: socket.socket, request: bytes, _: random.Random) -> None:
    client.sendall(request)
    client.recv(1)


def _by_half(client: socket.socket, request: bytes, _: random.Random) -> None:
    client.sendall(request)
    client.shutdown(socket.SHUT_WR)


WAYS: tuple[Leave, ...] = (
    _after_all,
    _by_reset,
    _with_a_byte_too_many,
    _with_another_begun,
    _in_the_middle,
    _in_the_head,
    _at_once,
    _in_the_response,
    _by_half,
)
