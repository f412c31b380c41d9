"""Send bodies made to take much work, and print what they cost: `python -m loadtests.bodies`.

For each attack: the statuses, the time, the growth of the service's memory at its peak, and the latency of
GET /v2/health/live meanwhile.
"""

import asyncio
import contextlib
import time
from collections import Counter

import numpy as np

from tests.support.attacks import ATTACKS, forget_peak, resident_bytes
from tests.support.live import connected, serving


async def probe(port: int, seconds: list[float]) -> None:
    """Ask for liveness until cancelled."""
    async with connected(port) as connection:
        while True:
            start = time.perf_counter()
            await connection.ask("GET", "/v2/health/live")
            seconds.append(time.perf_counter() - start)
            await asyncio.sleep(0.005)


async def post(port: int, path: str, body: bytes, headers: dict[str, str]) -> str:
    """Return the status, or how the connection ended."""
    async with connected(port) as connection:
        try:
            return str((await connection.ask("POST", path, body, headers)).status)
        except (OSError, asyncio.IncompleteReadError):
            return "closed"


async def attack(name: str, port: int, pid: int) -> str:
    """Run an attack and return its line of the table."""
    path, headers, body, count, _ = ATTACKS[name]()
    forget_peak(pid)
    before, seconds, start = resident_bytes(pid), list[float](), time.perf_counter()
    probing = asyncio.ensure_future(probe(port, seconds))
    statuses = Counter(await asyncio.gather(*(post(port, path, body, headers) for _ in range(count))))
    took = time.perf_counter() - start
    probing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await probing
    grown = (resident_bytes(pid, "VmHWM") - before) / 1e6
    p50, p99 = np.percentile(seconds or [0.0], [50, 99]) * 1e3
    return (
        f"| {name} x {count} | {dict(statuses)} | {took:.1f} s | +{grown:.1f} MB | {p50:.0f} / {p99:.0f} ms |"
    )


def main() -> None:
    """Print a table of all attacks."""
    with serving() as service:
        print("| attack | statuses | time | memory | /live p50 / p99 |\n|---|---|---|---|---|")
        for name in ATTACKS:
            print(asyncio.run(attack(name, service.port, service.process.pid)), flush=True)


if __name__ == "__main__":
    main()
