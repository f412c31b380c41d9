"""A million mixed requests: every response is compared with onnxruntime's, and the memory is watched."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import httptools
import uvloop

from loadtests.chaos import mixture
from loadtests.chaos.client import ResponseReader
from loadtests.chaos.mixture import Mixed
from loadtests.chaos.proc import MB, Resources
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import MODELS, Running, running
from loadtests.chaos.verdicts import Figure, Row, slope
from loadtests.progress import say

REQUESTS = 1_000_000
SPLIT_REQUESTS = 400_000
"""For the split form, whose caches have filled after 100,000: the models' code is the same."""

CALLERS = 48
HUNG_SECONDS = 30.0
SAMPLES = 100
WARM = 0.3
"""The fraction of the requests that the slope leaves out: caches and the allocator's arenas fill first."""

JUDGED_REQUESTS = 400_000
"""With fewer requests the slope is reported but not judged: what it extrapolates is the warm-up."""

LEAVE_WITHIN_SECONDS = 0.004


def mixed(context: Context) -> Iterator[Row]:
    """Send the mixture to all shipped models."""
    total = context.count(SPLIT_REQUESTS if context.subject.split else REQUESTS, 1000)
    with running(context.subject, models=MODELS) as run:
        tally = uvloop.run(_send(run, total, context.seed))
        alive = run.answers()
    growth = 1e5 * slope([point for point in tally.memory if point[0] >= WARM * total]) / MB
    figures: dict[str, Figure] = {
        "requests": total,
        "answered right": tally.right,
        "wrong answers": sum(tally.wrong.values()),
        "lost": sum(tally.lost.values()),
        "hung": tally.hung,
        "left by the client": tally.left,
        "requests/s": total / tally.seconds,
        "MB per 100,000": growth,
        "dead at the end": int(not alive),
    }
    bars = {"wrong answers": 0.0, "lost": 0, "hung": 0, "dead at the end": 0}
    if total >= JUDGED_REQUESTS:
        bars["MB per 100,000"] = 1
    bad = tally.wrong + tally.lost
    note = "wrong or lost: " + ", ".join(f"{name} {count}" for name, count in bad.items()) if bad else ""
    yield Row("Mixed requests", context.subject.name, figures, bars, note)


@dataclass
class _Tally:
    """What became of the requests. memory: (requests sent, bytes). wrong, lost: by kind."""

    right: int = 0
    left: int = 0
    hung: int = 0
    seconds: float = 0.0
    wrong: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)


class _Supply:
    """The requests that remain to be sent."""

    def __init__(self, total: int, seed: int) -> None:
        self.sent = 0
        self.chance = random.Random(seed)
        self._total = total
        self._mixture = mixture.requests(seed)

    def take(self) -> Mixed | None:
        """Return the next request; None after the last."""
        if self.sent >= self._total:
            return None
        self.sent += 1
        return next(self._mixture)


async def _send(run: Running, total: int, seed: int) -> _Tally:
    tally, supply = _Tally(), _Supply(total, seed)
    resources = Resources(run.server.processes())
    started = time.monotonic()
    pending = {asyncio.ensure_future(_Caller(run.port, supply, tally).run()) for _ in range(CALLERS)}
    sampled = -1
    while pending:
        done, pending = await asyncio.wait(pending, timeout=0.1)
        for caller in done:
            caller.result()
        if supply.sent * SAMPLES // total > sampled:
            sampled = supply.sent * SAMPLES // total
            tally.memory.append((supply.sent, resources.rss()))
            if sampled % 10 == 0:
                rate = supply.sent / (time.monotonic() - started)
                say(f"    {supply.sent:,} of {total:,}, {rate:,.0f}/s, {resources.rss() / MB:,.0f} MB")
    tally.seconds = time.monotonic() - started
    return tally


class _Caller(asyncio.Protocol):
    """One client: sends a request, waits for its response, sends the next; reconnects where it must.

    Without futures or timers for a request, so that the generator takes less CPU time than the service.
    """

    def __init__(self, port: int, supply: _Supply, tally: _Tally) -> None:
        self._port, self._supply, self._tally = port, supply, tally
        self._loop = asyncio.get_running_loop()
        self._request: Mixed | None = None
        self._since = 0.0
        self._closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    async def run(self) -> None:
        """Send requests until there are none."""
        while (request := self._supply.take()) is not None:
            self._request = request
            self._closed.clear()
            try:
                await self._loop.create_connection(lambda: self, "127.0.0.1", self._port)
            except OSError:
                self._count_lost()
                await asyncio.sleep(0.05)
                continue
            await self._ended()

    async def _ended(self) -> None:
        while not self._closed.is_set():
            try:
                async with asyncio.timeout(HUNG_SECONDS / 4):
                    await self._closed.wait()
            except TimeoutError:
                if self._request is not None and self._loop.time() - self._since > HUNG_SECONDS:
                    self._request = None
                    self._tally.hung += 1
                    assert self._transport is not None
                    self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._reader = ResponseReader()
        self._write()

    def _write(self) -> None:
        request, transport = self._request, self._transport
        assert request is not None
        assert transport is not None
        self._since = self._loop.time()
        transport.write(request.payload)
        if request.leaves:
            chance = self._supply.chance
            leave = transport.abort if chance.random() < 0.5 else transport.close
            self._loop.call_later(chance.uniform(0, LEAVE_WITHIN_SECONDS), leave)

    def data_received(self, data: bytes) -> None:
        request = self._request
        assert self._transport is not None
        try:
            self._reader.feed(data)
        except httptools.HttpParserError:
            self._transport.abort()
            return
        if request is None or request.leaves or not self._reader.answers:
            return
        answer = self._reader.answers.popleft()
        if request.accepts(answer):
            self._tally.right += 1
        else:
            self._tally.wrong[f"{request.kind} ({answer.status})"] += 1
        self._request = None if answer.close else self._supply.take()
        if self._request is None:
            self._transport.close()
        else:
            self._write()

    def connection_lost(self, _: Exception | None) -> None:
        if self._request is not None:
            if self._request.leaves:
                self._tally.left += 1
            else:
                self._count_lost()
        self._request = None
        self._closed.set()

    def _count_lost(self) -> None:
        assert self._request is not None
        self._tally.lost[self._request.kind] += 1
        self._request = None
