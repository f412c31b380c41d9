"""From one replica to three under callers that keep their connections: real processes, a real balancer."""

import asyncio
import itertools
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.support.live import RAW, Connection, connected, serving

AGE = 1.5
CALLERS = 18
PACE_SECONDS = 0.02


class RoundRobin:
    """A TCP proxy that gives each new connection to the next backend, as kube-proxy spreads connections."""

    def __init__(self, *ports: int) -> None:
        self.ports = list(ports)
        self._turns = itertools.count()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self.ports[next(self._turns) % len(self.ports)]
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


async def call(port: int, until: float, statuses: list[int]) -> None:
    """Ask at a steady pace over one connection, and open another one only when a response closes it."""
    while time.monotonic() < until:
        async with connected(port) as connection:
            kept = True
            while kept and time.monotonic() < until:
                response = await connection.ask("POST", "/classify", bytes(784), RAW)
                statuses.append(response.status)
                kept = response.headers.get("connection") != "close"
                await asyncio.sleep(PACE_SECONDS)


async def answered(port: int) -> float:
    """The requests that a replica has classified."""

    async def ask(connection: Connection) -> str:
        return (await connection.ask("GET", "/metrics")).body.decode()

    async with connected(port) as connection:
        found = re.findall(
            r'^inkserve_requests_total{.*"/classify".*} (\S+)$', await ask(connection), re.MULTILINE
        )
    return sum(map(float, found))


async def test_new_replicas_get_their_share_within_one_age(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    add_classifier()
    flags = ("--models-dir", str(tmp_path), "--connection-max-age-seconds", str(AGE))
    with ExitStack() as stack:
        ports = [stack.enter_context(serving(*flags)).port for _ in range(3)]
        balancer = RoundRobin(ports[0])
        server = await asyncio.start_server(balancer.carry, "127.0.0.1", 0)
        front = server.sockets[0].getsockname()[1]
        statuses: list[int] = []
        began = time.monotonic()
        ends = began + 0.5 + AGE + 1.0
        calling = [asyncio.ensure_future(call(front, ends, statuses)) for _ in range(CALLERS)]
        await asyncio.sleep(0.5)
        assert [await answered(port) > 0 for port in ports] == [True, False, False]
        balancer.ports = ports
        await asyncio.sleep(AGE)
        before = [await answered(port) for port in ports]
        await asyncio.gather(*calling)
        served = [await answered(port) - count for port, count in zip(ports, before, strict=True)]
        server.close()
        assert sum([await answered(port) for port in ports]) == len(statuses)
    assert set(statuses) == {200}
    assert min(served) > 0.2 * sum(served), served
