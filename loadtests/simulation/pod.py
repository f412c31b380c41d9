"""How one pod serves one-image requests: its measured costs and a model of it.

`RequestPod` follows every request through the service's own BatchQueue. Knows nothing of how many pods
there are.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import simpy
from numpy.typing import NDArray

from service.batching.on_loop import InlineRows, inline_rows
from service.batching.queue import DEADLINE_SHARE, Answer, Batch, BatchQueue, Item
from service.errors import QueueFull
from service.onnx.engine import bucket_sizes
from service.serving.tuning import BRIEF_SECONDS, BUCKETS_PER_OCTAVE, INLINE_SECONDS

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

    A batch of n rows, padded as the service pads it on a CPU, takes batch_seconds + n * row_seconds.
    turn_seconds: of the event loop, for each of its turns that answers requests, however many;
    request_seconds: for each of them; refuse_seconds: for one that is refused.
    overhead_seconds: what a caller sees on top (sockets, its own work).
    start_seconds: from starting the process to readiness. cores: that the pod has.
    inline_seconds: batches that take no longer run on the event loop; see `service.batching.on_loop`.
    deadline_seconds: what a request names as its deadline, after which its caller leaves.
    """

    batch_seconds: float
    row_seconds: float
    turn_seconds: float
    request_seconds: float
    refuse_seconds: float
    overhead_seconds: float
    start_seconds: float
    cores: int = 1
    inline_seconds: float = INLINE_SECONDS
    brief_seconds: float = BRIEF_SECONDS
    max_batch_size: int = 256
    max_queue_rows: int = 16384
    max_queue_requests: int = 512
    deadline_seconds: float = 30.0

    def device_seconds(self, rows: int) -> float:
        """One batch on the device."""
        buckets = _buckets(self.max_batch_size)
        return self.batch_seconds + buckets[bisect_left(buckets, rows)] * self.row_seconds

    def in_turns(self, rows: int) -> bool:
        """Whether the event loop stands still while such a batch runs.

        It does on the loop itself; and on a single core, which a device's thread would take from it.
        """
        return self.cores == 1 or rows <= self.inline_rows

    @cached_property
    def inline_rows(self) -> int:
        """The most rows of a batch that runs on the event loop, 0 if none does."""
        return self._inline.rows

    def most_inline(self, *, refusing: bool) -> int | None:
        """What the event loop cuts its batches to; None where it leaves longer ones to the thread.

        refusing: whether a request was refused since the last batch.
        """
        return self._inline.most(refusing=refusing)

    @cached_property
    def _inline(self) -> InlineRows:
        return inline_rows(self.device_seconds, self.max_batch_size, self.inline_seconds, self.brief_seconds)

    @cached_property
    def full_batch(self) -> int:
        """One-row requests in the largest batch that is formed."""
        most = self.most_inline(refusing=False) or self.max_batch_size
        return min(most, self.max_queue_rows, self.max_queue_requests)

    @cached_property
    def device_rate(self) -> float:
        """Rows per second of a device that runs one full batch after another."""
        return self.full_batch / self.device_seconds(self.full_batch)

    @cached_property
    def saturation_rate(self) -> float:
        """Most one-row requests per second, in full batches, which run in turns with HTTP or beside it.

        Each batch has a turn to itself, as where it takes longer than its requests.
        """
        loop_seconds = self.request_seconds + self.turn_seconds / self.full_batch
        if self.in_turns(self.full_batch):
            return 1 / (loop_seconds + 1 / self.device_rate)
        return min(self.device_rate, 1 / loop_seconds)

    @cached_property
    def most_waiting(self) -> float:
        """One-row requests that may wait: by the queue's two bounds, and so that the last is in time.

        What runs is done first, and then the request's own batch: each a whole one where so many wait.
        """
        most = self.deadline_seconds * DEADLINE_SHARE * self.device_rate
        in_time = max(min(most, self.max_batch_size) / 2, most - 2 * self.max_batch_size) + 1
        return min(self.max_queue_rows, self.max_queue_requests, in_time)


@cache
def _buckets(max_batch_size: int) -> tuple[int, ...]:
    return bucket_sizes(max_batch_size, BUCKETS_PER_OCTAVE["cpu"])


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
    """Where requests went. shed: told 503. refused: sent to a pod that had closed its port already."""

    arrived: float = 0.0
    answered: float = 0.0
    shed: float = 0.0
    expired: float = 0.0
    refused: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)

    def since(self, earlier: "Tally") -> "Tally":
        """What has happened since a copy of this was made."""
        latencies = Latencies()
        latencies.counts = self.latencies.counts - earlier.latencies.counts
        return Tally(
            self.arrived - earlier.arrived,
            self.answered - earlier.answered,
            self.shed - earlier.shed,
            self.expired - earlier.expired,
            self.refused - earlier.refused,
            latencies,
        )


class RequestPod:
    """A pod, one request at a time: the event loop, the service's queue, the device.

    The loop goes round as uvloop's does: it reads every request that has come by now, begins a batch if
    the device is idle, and writes the answers of the batches that are done. A short batch runs there and
    then, and others after it for as long as the rest of the loop took; a longer one on the device's thread,
    which goes on with what waits until nothing does. A request takes half of `request_seconds` to be read
    and half to be answered; a turn that answers takes `turn_seconds` too.
    """

    def __init__(self, env: simpy.Environment, costs: PodCosts, tally: Tally) -> None:
        self.offered = self.worked = 0.0
        self._env = env
        self._costs = costs
        self._tally = tally
        self._queue = BatchQueue(
            costs.max_batch_size, costs.max_queue_rows, max_queue_requests=costs.max_queue_requests
        )
        self._in_pod = 0
        self._unread: list[tuple[float, int]] = []
        self._done: list[Item] = []
        self._on_thread = False
        self._turn_ended: float | None = None  # of the batches on the loop; None while nothing waits to run
        self._asleep: Event | None = None
        env.process(self._loop())

    @property
    def waiting(self) -> float:
        """Requests that are inside, whether unread, queued, in a batch or about to be answered."""
        return self._in_pod

    def send(self, rows: int = 1) -> None:
        """A request arrives now."""
        self.offered += 1
        self._tally.arrived += 1
        self._in_pod += 1
        self._unread.append((self._env.now, rows))
        self._wake()

    def _wake(self) -> None:
        if self._asleep is not None:
            self._asleep.succeed()
            self._asleep = None

    def _loop(self) -> Process:
        while True:
            if not (self._unread or self._done or (self._queue.rows and not self._on_thread)):
                self._turn_ended = None
                self._asleep = self._env.event()
                yield self._asleep
            yield from self._read()
            if not self._on_thread:
                yield from self._begin()
            yield from self._answer()

    def _read(self) -> Process:
        unread, self._unread = self._unread, []
        for arrived, rows in unread:
            if self._takes(arrived, rows):
                yield self._env.timeout(self._costs.request_seconds / 2)
            else:
                yield self._env.timeout(self._costs.refuse_seconds)
                self.worked += self._costs.refuse_seconds * self._costs.saturation_rate
                self._leave(shed=1)

    def _takes(self, arrived: float, rows: int) -> bool:
        """Queue a request, unless the queue is full or its deadline too near; see `service.batching`."""
        self._expire()
        now = self._env.now
        # Only what an item's callback is told of is left out; the queue looks at its rows and times.
        item = Item((), rows, now, now + self._costs.deadline_seconds, lambda _: self._count(arrived))
        try:
            self._queue.push(item)
        except QueueFull:
            return False
        if self._turn_ended is None:
            self._turn_ended = now
        return True

    def _expire(self) -> None:
        if self._queue.next_deadline <= self._env.now:
            self._leave(expired=len(self._queue.expire(self._env.now)))

    def _begin(self) -> Process:
        """Run batches as `service.batching.device.Device` does in a turn of the loop, or start its thread."""
        began = self._env.now
        elsewhere = began - (began if self._turn_ended is None else self._turn_ended)
        while True:
            batch = self._take(self._costs.most_inline(refusing=self._queue.refusing))
            if not batch.parts:
                self._turn_ended = None
                return
            if not self._costs.in_turns(batch.rows):
                self._on_thread = True
                self._env.process(self._thread(batch))
                return
            yield from self._run(batch)
            self._turn_ended = self._env.now
            enough = min(elsewhere, self._costs.inline_seconds)
            if self._turn_ended - began >= enough or batch.rows > self._costs.inline_rows:
                return

    def _thread(self, batch: Batch) -> Process:
        while batch.parts:
            yield from self._run(batch)
            self._wake()
            batch = self._take(None)
        self._on_thread = False
        self._turn_ended = None

    def _take(self, most: int | None) -> Batch:
        self._expire()
        return self._queue.take(most)

    def _run(self, batch: Batch) -> Process:
        started = self._env.now
        yield self._env.timeout(self._costs.device_seconds(batch.rows))
        self._queue.note_pace(batch.rows, started, self._env.now)
        self._done += [part.item for part in batch.parts if part.stop == part.item.rows]

    def _answer(self) -> Process:
        done, self._done = self._done, []
        if done:
            yield self._env.timeout(self._costs.turn_seconds)
        for item in done:
            yield self._env.timeout(self._costs.request_seconds / 2)
            item.done(EMPTY)

    def _count(self, arrived: float) -> None:
        self.worked += 1
        seconds = self._env.now - arrived + self._costs.overhead_seconds
        if seconds > self._costs.deadline_seconds:
            self._leave(expired=1)
            return
        self._leave(answered=1)
        self._tally.latencies.add_one(seconds)

    def _leave(self, answered: int = 0, shed: int = 0, expired: int = 0) -> None:
        self._in_pod -= answered + shed + expired
        self._tally.answered += answered
        self._tally.shed += shed
        self._tally.expired += expired


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
