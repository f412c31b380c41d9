"""A simulated pod that follows every request through the service's own BatchQueue.

Knows nothing of other pods.
"""

from collections.abc import Callable, Generator

import numpy as np
import simpy

from loadtests.simulation.costs import PodCosts
from loadtests.simulation.service_rules import Batch, Counts, Queue
from loadtests.simulation.tally import Tally

Event = simpy.Event
Process = Generator[Event, None, None]


class RequestPod:
    """A pod, request by request: the event loop, the service's queue, the device.

    The loop iterates like uvloop's: it reads every request that has arrived, starts a batch if the device is
    idle, and writes the responses of the batches that are done. A short batch runs inline, and others follow
    it for as long as the rest of the loop took. A longer batch runs on the device thread, which continues
    until the queue is empty. A request takes half of `request_seconds` to read and half to answer; an
    iteration that answers takes `turn_seconds` in addition.
    """

    def __init__(self, env: simpy.Environment, costs: PodCosts, tally: Tally) -> None:
        self.offered = self.worked = 0.0
        self._ended = self._shed = 0.0
        self._device_work = self._spared = self._slept = 0.0
        self._asleep_since = self._born = env.now
        self._env = env
        self._costs = costs
        self._tally = tally
        self._queue = Queue(costs.max_batch_size, costs.max_queue_rows, costs.max_queue_requests)
        self._in_pod = 0
        self._unread: list[tuple[float, int]] = []
        self._done: list[Callable[[], None]] = []
        self._on_thread = False
        self._turn_ended: float | None = None  # end of the last inline batch; None while nothing is queued
        self._asleep: Event | None = None
        env.process(self._loop())

    @property
    def waiting(self) -> float:
        """Requests in flight: unread, queued, in a batch or about to be answered."""
        return self._in_pod

    def counts(self, now: float) -> Counts:
        """What the service would have counted by now."""
        slept = self._slept + (now - self._asleep_since if self._asleep is not None else 0.0)
        work = {"http": now - self._born - slept - self._spared, "device": self._device_work}
        return Counts(now, work, self._ended, self._shed, 0.0, self._queue.rows)

    def send(self, rows: int = 1) -> None:
        """Let a request arrive now."""
        self.offered += 1
        self._tally.arrived += 1
        self._in_pod += 1
        self._unread.append((self._env.now, rows))
        self._wake()

    def _wake(self) -> None:
        if self._asleep is not None:
            self._asleep.succeed()
            self._asleep = None
            self._slept += self._env.now - self._asleep_since

    def _loop(self) -> Process:
        while True:
            if not (self._unread or self._done or (self._queue.rows and not self._on_thread)):
                self._turn_ended = None
                self._asleep, self._asleep_since = self._env.event(), self._env.now
                yield self._asleep
            yield from self._read()
            if not self._on_thread:
                yield from self._begin()
            yield from self._answer()

    def _read(self) -> Process:
        unread, self._unread = self._unread, []
        for arrived, rows in unread:
            if self._accept(arrived, rows):
                yield self._env.timeout(self._costs.request_seconds / 2)
            else:
                yield self._env.timeout(self._costs.refuse_seconds)
                self.worked += self._costs.refuse_seconds * self._costs.saturation_rate
                self._leave(shed=1)

    def _accept(self, arrived: float, rows: int) -> bool:
        """Queue a request; False if the service would reject it."""
        self._expire()
        now = self._env.now
        deadline = now + self._costs.deadline_seconds
        if not self._queue.push(rows, now, deadline, lambda: self._count(arrived)):
            return False
        if self._turn_ended is None:
            self._turn_ended = now
        return True

    def _expire(self) -> None:
        self._leave(expired=self._queue.expire(self._env.now))

    def _begin(self) -> Process:
        """Run batches as the service's device does in one iteration of the loop, or start its thread."""
        began = self._env.now
        elsewhere = began - (began if self._turn_ended is None else self._turn_ended)
        while True:
            batch = self._take(self._costs.max_on_loop_rows(refusing=self._queue.refused_since_batch))
            if not batch.rows:
                self._turn_ended = None
                return
            if not self._costs.blocks_loop(batch.rows):
                self._on_thread = True
                self._env.process(self._thread(batch))
                return
            yield from self._run(batch)
            self._spared += self._costs.device_seconds(batch.rows) * (1 - self._costs.work_share(batch.rows))
            self._turn_ended = self._env.now
            enough = min(elsewhere, self._costs.on_loop_seconds)
            if self._turn_ended - began >= enough or batch.rows > self._costs.on_loop_rows:
                return

    def _thread(self, batch: Batch) -> Process:
        while batch.rows:
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
        self._device_work += self._costs.device_seconds(batch.rows) * self._costs.work_share(batch.rows)
        self._queue.note_batch(batch.rows, started, self._env.now)
        self._done += batch.finished

    def _answer(self) -> Process:
        done, self._done = self._done, []
        if done:
            yield self._env.timeout(self._costs.turn_seconds)
        for finished in done:
            yield self._env.timeout(self._costs.request_seconds / 2)
            finished()

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
        self._ended += answered + shed + expired
        self._shed += shed
        self._tally.answered += answered
        self._tally.shed += shed
        self._tally.expired += expired


def poisson(
    env: simpy.Environment, rate: Callable[[float], float], send: Callable[[], None], rng: np.random.Generator
) -> Process:
    """Call `send` as a Poisson process, at a rate that changes slowly compared with its own inverse."""
    while True:
        yield env.timeout(rng.exponential(1 / max(rate(env.now), 1e-9)))
        send()
