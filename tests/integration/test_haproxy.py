"""Agent checks as Debian's HAProxy reads them, in front of real services."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from loadtests.haproxy import Backend, Haproxy, Pod, balancing, installed
from loadtests.processes import free_port
from tests.support.live import RAW, Service, connected, post_all, serving

PROGRAM = installed()
BACKENDS = (Backend("agents", "roundrobin", agents=True), Backend("plain", "roundrobin", agents=False))
PATIENCE_SECONDS = 60

pytestmark = pytest.mark.skipif(
    PROGRAM is None and not os.environ.get("CI"),
    reason="haproxy is missing: Debian's package haproxy has it",
)


@contextmanager
def balanced(models_dir: Path, *forms: tuple[str, ...]) -> Iterator[tuple[Haproxy, list[Service]]]:
    """HAProxy in front of a service for each of these lists of flags."""
    assert PROGRAM is not None
    with ExitStack() as stack:
        agent_ports = [free_port() for _ in forms]
        services = [
            stack.enter_context(serving("--models-dir", str(models_dir), "--agent-port", str(port), *flags))
            for port, flags in zip(agent_ports, forms, strict=True)
        ]
        pods = [Pod(service.port, port) for service, port in zip(services, agent_ports, strict=True)]
        yield stack.enter_context(balancing(PROGRAM, BACKENDS, pods)), services


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def column(haproxy: Haproxy, name: str) -> list[str]:
    return [row[name] for row in haproxy.servers("agents")]


@contextmanager
def loaded(port: int) -> Iterator[None]:
    """64 callers at one pod, past HAProxy, until the block ends."""
    stopping = threading.Event()

    def call() -> None:
        while not stopping.is_set():
            asyncio.run(post_all(port, "/classify", [bytes(784)] * 2000, RAW))

    calling = threading.Thread(target=call)
    calling.start()
    try:
        yield
    finally:
        stopping.set()
        calling.join()


def test_the_loaded_pod_gets_the_lower_weight(add_classifier: Callable[..., Path], tmp_path: Path) -> None:
    add_classifier()
    with balanced(tmp_path, (), ("--workers", "1")) as (haproxy, services):
        until(lambda: set(column(haproxy, "agent_status")) == {"L7OK"})
        with loaded(services[1].port):
            until(lambda: haproxy.weights("agents")[1] < haproxy.weights("agents")[0])
        assert haproxy.weights("plain") == [100, 100]


@pytest.mark.parametrize("form", [(), ("--workers", "1")], ids=["one process", "split"])
def test_a_pod_that_stops_is_drained_and_loses_nothing(
    form: tuple[str, ...], add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    stopping = ("--drain-seconds", "4", *form)
    with balanced(tmp_path, stopping, ()) as (haproxy, services):
        until(lambda: set(column(haproxy, "agent_status")) == {"L7OK"})
        services[0].process.terminate()
        until(lambda: haproxy.weights("agents")[0] == 0)
        before = [int(count) for count in column(haproxy, "stot")]
        statuses = asyncio.run(classify(haproxy.ports["agents"], 20))
        after = [int(count) for count in column(haproxy, "stot")]
        assert statuses == [200] * 20
        assert [new - old for new, old in zip(after, before, strict=True)] == [0, 20]
        assert services[0].process.wait(timeout=60) == 0


async def classify(port: int, count: int) -> list[int]:
    """The statuses of this many requests, each on a connection of its own."""
    statuses = []
    for _ in range(count):
        async with connected(port) as connection:
            statuses.append((await connection.ask("POST", "/classify", bytes(784), RAW)).status)
    return statuses


def test_a_port_that_is_taken_stops_the_start(add_classifier: Callable[..., Path], tmp_path: Path) -> None:
    add_classifier()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(pytest.fail.Exception, match=f"127.0.0.1:{port} cannot be listened on"),
            serving("--models-dir", str(tmp_path), "--agent-port", str(port)),
        ):
            pass
