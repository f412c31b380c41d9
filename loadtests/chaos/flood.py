"""A flood of large bodies: what a client of single images notices."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from loadtests.chaos.client import Connection, Hung, Lost
from loadtests.chaos.probe import failures, p99_ms, probing
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import Running, running
from loadtests.chaos.verdicts import Figure, Row, ratio

ROWS = 256
FLOODING_CONNECTIONS = 8
RATE = 20.0
SECONDS = 20.0
MOST = 3.0


def flood(context: Context) -> Iterator[Row]:
    """Measure 20 single images a second without and with the flood."""
    seconds = context.seconds(SECONDS, 6)
    with running(context.subject) as run:
        with probing(run.port, run.subject.request(1), RATE) as probe:
            started = time.monotonic()
            time.sleep(seconds)
            begun = time.monotonic()
            images = _flood(run, seconds)
            ended = time.monotonic()
        alive = run.answers()
    idle, meanwhile = probe.between(started, begun), probe.between(begun + 0.5, ended)
    figures: dict[str, Figure] = {
        "flooding images/s": images / seconds,
        "idle p99 ms": p99_ms(idle),
        "p99 ms": p99_ms(meanwhile),
        "times idle": ratio(p99_ms(meanwhile), p99_ms(idle)),
        "failures": failures(meanwhile),
        "dead at the end": int(not alive),
    }
    bars = {"times idle": MOST, "failures": 0, "dead at the end": 0}
    yield Row("Flood of 256-row bodies", context.subject.name, figures, bars)


def _flood(run: Running, seconds: float) -> int:
    """Send large bodies as fast as they are answered; return how many images were."""
    request = run.subject.request(ROWS)
    ended = threading.Event()
    with ThreadPoolExecutor(FLOODING_CONNECTIONS) as pool:
        clients = [pool.submit(_one_flooder, run.port, request, ended) for _ in range(FLOODING_CONNECTIONS)]
        time.sleep(seconds)
        ended.set()
        return sum(each.result() for each in clients)


def _one_flooder(port: int, request: bytes, ended: threading.Event) -> int:
    images = 0
    connection: Connection | None = None
    while not ended.is_set():
        try:
            connection = connection or Connection(port)
            answer = connection.ask(request)
        except (OSError, Lost, Hung):
            connection = None
            time.sleep(0.02)
            continue
        images += ROWS if answer.status == 200 else 0
        if answer.close:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return images
