"""The command `python -m loadtests.retry_after`: are clients that obey Retry-After served?

Ten seconds' work arrives within two seconds, over as many connections as requests. A client that gets 429
waits for the seconds that Retry-After says and sends its request again. Beside it, in the same run: clients
that wait for a constant second instead. The ideal time is that of the same requests without a pause, measured
before and after.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from loadtests.interrupts import exit_code
from loadtests.machine import describe
from loadtests.placement import on_cores, place
from loadtests.processes import end_servers_on_sigterm
from loadtests.progress import doing, say
from loadtests.service_process import Service, serving

MODEL = "cnn"
IMAGES = 32
WORK_SECONDS = 10.0
BURST_SECONDS = 2.0
QUEUED = 128
CALLERS = 16
GIVE_UP = 20
BODY = bytes(range(256)) * (784 * IMAGES // 256)
REQUEST = (
    f"POST /classify?model={MODEL} HTTP/1.1\r\nHost: load\r\nContent-Type: application/octet-stream\r\n"
    f"Accept: application/octet-stream\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY

Send = Callable[[], Awaitable[tuple[int, int]]]
"""Sends the request once; returns the status and the seconds of Retry-After."""


@dataclass(frozen=True)
class Burst:
    """What became of a burst. seconds: from its beginning to the last response with 200.

    ideal_seconds: that of the same requests without a pause. tries: clients by how often they sent.
    """

    seconds: float
    ideal_seconds: float
    tries: Counter[int]

    @property
    def ratio(self) -> float:
        """Seconds per ideal second."""
        return self.seconds / self.ideal_seconds

    def row(self, name: str) -> str:
        """Return the row of a table."""
        clients = self.tries.total()
        two = sum(count for tries, count in self.tries.items() if tries <= 2)
        most = max(self.tries)
        return (
            f"| {name} | {clients} | {self.ideal_seconds:.1f} | {self.seconds:.1f} | {self.ratio:.2f} "
            f"| {100 * self.tries[1] / clients:.0f} % | {100 * two / clients:.1f} % | {most} |"
        )


TABLE = (
    "| clients wait for | clients | ideal s | all served after, s | ratio | at the first try "
    "| within two tries | most tries |\n"
    "|---|---|---|---|---|---|---|---|"
)


async def _send(port: int) -> tuple[int, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        after = head.partition("retry-after: ")[2].partition("\r\n")[0]
        return int(head.split()[1]), int(after or 0)
    finally:
        writer.close()


async def steady_rate(port: int, seconds: float) -> float:
    """Return the requests per second that a few callers without pauses get."""
    answered, stop = 0, time.monotonic() + seconds

    async def caller() -> None:
        nonlocal answered
        while time.monotonic() < stop:
            status, _ = await _send(port)
            answered += status == 200

    started = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return answered / (time.monotonic() - started)


async def burst(port: int, clients: int, constant: float | None, seed: int) -> tuple[float, Counter[int]]:
    """Send a burst; returns when the last client was served, and how often clients sent.

    constant: seconds to wait after a 429, whatever Retry-After says; None to obey it.
    """
    draw = random.Random(seed)
    started = time.monotonic()
    tries: Counter[int] = Counter()

    async def client(delay: float) -> None:
        await asyncio.sleep(delay)
        for attempt in range(1, GIVE_UP + 1):
            status, after = await _send(port)
            if status == 200:
                tries[attempt] += 1
                return
            if status != 429:
                raise RuntimeError(f"status is {status}, expected 200 or 429")
            await asyncio.sleep(after if constant is None else constant)
        tries[GIVE_UP + 1] += 1

    await asyncio.gather(*(client(draw.uniform(0, BURST_SECONDS)) for _ in range(clients)))
    return time.monotonic() - started, tries


def measure(service: Service, rounds: int) -> list[tuple[str, Burst]]:
    """Measure bursts, alternately with both kinds of clients."""
    measured = []
    for number in range(rounds):
        for name, constant in (("Retry-After", None), ("a constant 1 s", 1.0)):
            with doing(f"round {number + 1}: clients wait for {name}"):
                before = asyncio.run(steady_rate(service.port, 3.0))
                clients = round(before * WORK_SECONDS)
                seconds, tries = asyncio.run(burst(service.port, clients, constant, number))
                after = asyncio.run(steady_rate(service.port, 3.0))
            ideal = clients / statistics.mean((before, after))
            measured.append((name, Burst(seconds, ideal, tries)))
            say(measured[-1][1].row(name))
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.retry_after", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="bursts with each kind of clients (default: 3)")
    parsed = parser.parse_args(arguments)
    end_servers_on_sigterm()
    flags = ("--max-queue-requests", str(QUEUED), "--default-classifier", MODEL, "--intra-op-threads", "1")
    placement = place()
    with serving(flags, placement.service_cores) as service, on_cores(placement.generator_cores):
        measured = measure(service, parsed.rounds)
    print(f"{describe()}\n\n{TABLE}")
    for name, each in sorted(measured, key=lambda pair: pair[0], reverse=True):
        print(each.row(name))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
