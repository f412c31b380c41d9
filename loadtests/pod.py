"""How one pod serves one-image requests: its measured costs and a model of it.

`RequestPod` follows every request through the service's own BatchQueue. Knows nothing of how many pods
there are.
"""

import json
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simpy
from numpy.typing import NDArray

from service.batching import Answer, BatchQueue, Item
from service.errors import QueueFull

Event = simpy.Event
Process = Generator[Event, None, None]
Floats = NDArray[np.float64]

EMPTY = Answer((), 0.0, 0.0, 0)
"""What the simulated requests are told; they look only at the time."""

UTILISATIONS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEVELS = np.array([*np.arange(0.5, 99.0) / 100, 0.9925, 0.9975])
"""The quantiles that stand for a distribution, each in the middle of its share (1 %, at the end 0.5 %)."""
SHARES = np.array([*np.full(99, 0.01), 0.005, 0.005])


@dataclass(frozen=True)
class PodCosts:
    """What a pod was measured to take, and its limits.

    A batch of n rows, padded to one of four sizes an octave as the service pads it, takes
    batch_seconds + n * row_seconds on the device's thread. request_seconds: of the event loop's thread,
    for each request. overhead_seconds: what a caller sees on top (sockets, its own work).
    start_seconds: from starting the process to readiness. deadline_seconds: after which a caller leaves.
    """

    batch_seconds: float
    row_seconds: float
    request_seconds: float
    overhead_seconds: float
    start_seconds: float
    max_batch_size: int = 256
    max_queue_rows: int = 16384
    deadline_seconds: float = 30.0

    def device_seconds(self, rows: int) -> float:
        """One batch on the device."""
        octave = 1 << max(0, (rows - 1).bit_length() - 1)
        step = max(1, octave // 4)
        padded = min(-(-rows // step) * step, self.max_batch_size)
        return self.batch_seconds + padded * self.row_seconds

    @property
    def device_rate(self) -> float:
        """Rows per second of a device that is always busy."""
        return self.max_batch_size / self.device_seconds(self.max_batch_size)

    @property
    def saturation_rate(self) -> float:
        """One-row requests per second at which the busier of the two threads is always busy."""
        return min(self.device_rate, 1 / self.request_seconds)

    @property
    def sheds(self) -> bool:
        """Whether overload fills the queue, so that requests get 503.

        Where the event loop is the slower of the two, requests pile up before it, unseen, in their sockets.
        """
        return self.device_rate < 1 / self.request_seconds


def load_costs(file: Path) -> PodCosts:
    """The costs that `loadtests.capacity measure` wrote."""
    return PodCosts(**json.loads(file.read_text())["costs"])


class Latencies:
    """A histogram of latencies in seconds, 2.3 % a bin, into which numbers of requests go."""

    LOW, BINS = 1e-5, 800
    PER_LOG = BINS / math.log(1e8)
    EDGES = np.geomspace(LOW, LOW * 1e8, BINS + 1)

    def __init__(self) -> None:
        self.counts: Floats = np.zeros(self.BINS)

    def add_one(self, seconds: float) -> None:
        """Count a request that took so long."""
        place = int(math.log(max(seconds, self.LOW) / self.LOW) * self.PER_LOG)
        self.counts[min(place, self.BINS - 1)] += 1

    def add(self, seconds: Floats, counts: Floats) -> None:
        """Count requests that took so long, so many of each."""
        places = np.searchsorted(self.EDGES, np.maximum(seconds, self.LOW), side="right") - 1
        np.add.at(self.counts, np.minimum(places, self.BINS - 1), counts)

    def quantile(self, level: float) -> float:
        """The latency below which that part of the requests lies; nan without any."""
        if not self.counts.sum():
            return float("nan")
        below = np.cumsum(self.counts) / self.counts.sum()
        place = int(np.searchsorted(below, level))
        return math.sqrt(self.EDGES[place] * self.EDGES[place + 1])

    def share_above(self, seconds: float) -> float:
        """The part of the requests that took longer."""
        total = self.counts.sum()
        return (
            float(self.counts[int(np.searchsorted(self.EDGES, seconds)) + 1 :].sum() / total)
            if total
            else 0.0
        )


@dataclass
class Tally:
    """Where requests went. refused: sent to a pod that had closed its port already."""

    arrived: float = 0.0
    answered: float = 0.0
    shed: float = 0.0
    expired: float = 0.0
    refused: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)


class RequestPod:
    """A pod, one request at a time: the event loop's thread, the service's queue, the device's thread.

    A request takes half of `request_seconds` on the loop before it is queued and half after its batch;
    the loop does what became due first, so that under overload a request waits there twice.
    """

    def __init__(self, env: simpy.Environment, costs: PodCosts, tally: Tally) -> None:
        self.offered = self.worked = 0.0
        self._env = env
        self._costs = costs
        self._tally = tally
        self._queue = BatchQueue(costs.max_batch_size, costs.max_queue_rows)
        self._in_pod = 0
        self._loop_free_at = 0.0
        self._idle: Event | None = None
        env.process(self._work())

    @property
    def waiting(self) -> float:
        """Requests that are inside, whether queued or in a batch."""
        return self._in_pod

    def send(self, rows: int = 1) -> None:
        """A request arrives now."""
        self.offered += 1
        self._tally.arrived += 1
        self._in_pod += 1
        arrived = self._env.now
        ready = self._env.timeout(self._on_loop() - arrived)
        ready.callbacks.append(lambda _: self._push(arrived, rows))

    def _on_loop(self) -> float:
        """When half a request's work, begun as soon as the loop is free, is done."""
        self._loop_free_at = max(self._env.now, self._loop_free_at) + self._costs.request_seconds / 2
        return self._loop_free_at

    def _push(self, arrived: float, rows: int) -> None:
        self._expire()
        self.worked += 0 if self._costs.sheds else 0.5
        deadline = arrived + self._costs.deadline_seconds
        if deadline <= self._env.now:
            self._leave(expired=1)
            return
        # The queue hands an item's callback through, and looks only at its rows and times.
        try:
            self._queue.push(Item((), rows, self._env.now, deadline, lambda _: self._answer(arrived)))
        except QueueFull:
            self._on_loop()
            self._leave(shed=1)
            return
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None

    def _leave(self, answered: int = 0, shed: int = 0, expired: int = 0) -> None:
        self._in_pod -= answered + shed + expired
        self._tally.answered += answered
        self._tally.shed += shed
        self._tally.expired += expired

    def _expire(self) -> None:
        if self._queue.next_deadline <= self._env.now:
            self._leave(expired=len(self._queue.expire(self._env.now)))

    def _work(self) -> Process:
        while True:
            self._expire()
            batch = self._queue.take()
            if not batch.parts:
                self._idle = self._env.event()
                yield self._idle
                continue
            yield self._env.timeout(self._costs.device_seconds(batch.rows))
            for part in batch.parts:
                if part.stop == part.item.rows:
                    part.item.done(EMPTY)

    def _answer(self, arrived: float) -> None:
        self.worked += 1 if self._costs.sheds else 0.5
        seconds = self._on_loop() - arrived + self._costs.overhead_seconds
        if seconds > self._costs.deadline_seconds:
            self._leave(expired=1)
            return
        self._leave(answered=1)
        self._tally.latencies.add_one(seconds)


@dataclass(frozen=True)
class Stationary:
    """Latencies of a pod at steady load. seconds: (utilisations, levels), from `RequestPod`."""

    seconds: Floats

    def at(self, utilisation: float) -> Floats:
        """The latencies at LEVELS, (levels,)."""
        place = float(np.interp(utilisation, UTILISATIONS, np.arange(len(UTILISATIONS))))
        low = int(place)
        high = min(low + 1, len(UTILISATIONS) - 1)
        mixed: Floats = self.seconds[low] + (place - low) * (self.seconds[high] - self.seconds[low])
        return mixed


def stationary(costs: PodCosts, seed: int, requests: int = 20_000) -> Stationary:
    """Run one pod at each of UTILISATIONS until so many requests are answered."""
    rows = [steady_latencies(costs, part * costs.saturation_rate, seed, requests) for part in UTILISATIONS]
    return Stationary(np.array([[each.quantile(level) for level in LEVELS] for each in rows]))


def steady_latencies(costs: PodCosts, rate: float, seed: int, requests: int) -> Latencies:
    """Latencies of one pod at a steady rate, until about so many requests have come."""
    tally = Tally()
    env = simpy.Environment()
    pod = RequestPod(env, costs, tally)
    env.process(poisson(env, lambda _: rate, pod.send, np.random.default_rng(seed)))
    env.run(until=requests / rate)
    return tally.latencies


def poisson(
    env: simpy.Environment, rate: Callable[[float], float], send: Callable[[], None], rng: np.random.Generator
) -> Process:
    """Arrivals without memory, at a rate that may change slowly against its own inverse."""
    while True:
        yield env.timeout(rng.exponential(1 / max(rate(env.now), 1e-9)))
        send()
