"""A pod as a fluid: `FluidPod` moves numbers of requests, for rates too high to follow each request."""

import math
from collections import deque

import numpy as np

from loadtests.simulation.costs import PodCosts
from loadtests.simulation.service_rules import Counts
from loadtests.simulation.stationary import SHARES, Stationary
from loadtests.simulation.tally import Tally


class FluidTally(Tally):
    """A tally for many pods with the same behaviour: their latencies are added once per tick."""

    def __init__(self, usual: Stationary) -> None:
        super().__init__()
        self.usual = usual
        self._served: dict[float, float] = {}
        self._late: dict[float, float] = {}

    def serve(self, utilisation: float, count: float) -> None:
        """Count requests that found no backlog in a pod at this utilisation."""
        self.answered += count
        _add(self._served, round(utilisation, 3), count)

    def serve_late(self, seconds: float, count: float) -> None:
        """Count requests that took this long because of a backlog."""
        self.answered += count
        _add(self._late, round(seconds, 5), count)

    def flush(self) -> None:
        """Add the tick's latencies to the histogram."""
        for utilisation, count in self._served.items():
            self.latencies.add(self.usual.at(utilisation), count * SHARES)
        if self._late:
            self.latencies.add(np.array(list(self._late)), np.array(list(self._late.values())))
        self._served.clear()
        self._late.clear()


def _add(counts: dict[float, float], key: float, count: float) -> None:
    counts[key] = counts.get(key, 0.0) + count


class Cohorts:
    """Numbers of requests by the time of their arrival, first come first served."""

    def __init__(self) -> None:
        self.count = 0.0
        self._spans: deque[tuple[float, float, float]] = deque()

    def add(self, begin: float, end: float, count: float) -> None:
        """Add requests that arrived evenly between two times, after all others."""
        if count > 0:
            self._spans.append((begin, end, count))
            self.count += count

    def take(self, count: float) -> "Cohorts":
        """Remove the oldest requests, at most this many."""
        taken = Cohorts()
        while self._spans and taken.count < count - 1e-9:
            begin, end, there = self._spans.popleft()
            part = min(1.0, (count - taken.count) / there)
            middle = begin + part * (end - begin)
            taken.add(begin, middle, part * there)
            if part < 1.0:
                self._spans.appendleft((middle, end, (1 - part) * there))
        self.count = self.count - taken.count if self._spans else 0.0
        return taken

    def before(self, time: float) -> float:
        """The number of requests that arrived before a time."""
        return sum(count * _part(begin, end, time) for begin, end, count in self._spans)

    def join(self, others: "Cohorts") -> None:
        """Append later requests."""
        for span in others._spans:
            self.add(*span)

    def middles(self) -> list[tuple[float, float]]:
        """Each cohort's mean arrival time and its size."""
        return [((begin + end) / 2, count) for begin, end, count in self._spans]


def _part(begin: float, end: float, time: float) -> float:
    return 1.0 if end <= time else max(0.0, (time - begin) / (end - begin))


class FluidPod:
    """A pod as numbers of requests. With a backlog it iterates like `RequestPod`'s loop.

    In each iteration it reads the requests that have arrived, queues those that fit, rejects the others, and
    runs and answers a batch: one after another if the batch runs inline, otherwise at the same time. If the
    loop runs batches and took longer for everything else, it runs several.
    Without a backlog, a tick's requests are served within the tick with the latencies of `Stationary`, which
    include the random arrivals: a tick should be long enough for a steady number of requests.
    """

    def __init__(self, costs: PodCosts, tally: FluidTally) -> None:
        self.offered = self.worked = 0.0
        self._ended = self._shed = 0.0
        self._stepped_at: float | None = None
        self._work = {"http": 0.0, "device": 0.0}
        self._costs = costs
        self._tally = tally
        self._unread = Cohorts()
        self._queue = Cohorts()
        self._batch = Cohorts()
        self._turn_ends = 0.0
        self._answer_seconds = 0.0

    @property
    def waiting(self) -> float:
        """Requests in flight: unread, queued or in a batch."""
        return self._unread.count + self._queue.count + self._batch.count

    def counts(self, now: float) -> Counts:
        """What the service would have counted by the end of the last step, or now before the first one."""
        return Counts(
            now if self._stepped_at is None else self._stepped_at,
            dict(self._work),
            self._ended,
            self._shed,
            0.0,
            self._queue.count,
        )

    def step(self, now: float, seconds: float, requests: float) -> None:
        """Accept the requests of the tick that ends now, and serve what could be served in it."""
        self._stepped_at = now
        self.offered += requests
        self._tally.arrived += requests
        utilisation = requests / (self._costs.saturation_rate * seconds)
        if not self.waiting:
            self._turn_ends = now - seconds
            self._answer_seconds = 0.0
        self._unread.add(now - seconds, now, requests)
        while self._turn_ends <= now:
            self._end_turn()
            if utilisation <= 1 and self._is_light():
                self._serve_all(utilisation)
                for part, share in self._tally.usual.work_at(utilisation).items():
                    self._work[part] += share * max(0.0, now - max(self._turn_ends, now - seconds))
                return
            self._begin_turn()

    def _is_light(self) -> bool:
        """Whether all waiting requests fit into one batch."""
        return self._queue.count + self._unread.before(self._turn_ends) <= self._costs.full_batch

    def _serve_all(self, utilisation: float) -> None:
        count = self._queue.count + self._unread.count
        self._queue, self._unread = Cohorts(), Cohorts()
        self.worked += count
        self._ended += count
        if count:
            self._tally.serve(utilisation, count)

    def _begin_turn(self) -> None:
        costs, came = self._costs, self._unread.before(self._turn_ends)
        room = max(0.0, costs.max_queued - self._queue.count)
        read = self._unread.take(min(came, room))
        shed = self._unread.take(came - read.count).count
        self._tally.shed += shed
        self._shed += shed
        self._ended += shed
        self.worked += shed * costs.refuse_seconds * costs.saturation_rate
        self._queue.join(read)
        reading = shed * costs.refuse_seconds + read.count * costs.request_seconds / 2
        device, parallel = self._run_batches(self._answer_seconds + reading, refusing=shed > 0)
        self._answer_seconds = costs.turn_seconds + self._batch.count * costs.request_seconds / 2
        loop = reading + self._answer_seconds
        work = self._batch.count / costs.device_rate
        self._work["device"] += min(work, device)
        self._work["http"] += loop if parallel else loop + min(work, device)
        self._turn_ends += max(loop, device) if parallel else loop + device

    def _run_batches(self, elsewhere: float, *, refusing: bool) -> tuple[float, bool]:
        """Take an iteration's batches from the queue: their seconds, and whether the loop runs meanwhile.

        elsewhere: seconds of everything else in the loop since the last batches. refusing cuts the first
        batch.
        """
        costs, seconds = self._costs, 0.0
        most = costs.max_on_loop_rows(refusing=refusing) or costs.full_batch
        while True:
            batch = self._queue.take(most)
            rows = max(1, math.ceil(batch.count - 1e-9))
            seconds += costs.device_seconds(rows)
            self._batch.join(batch)
            if not costs.blocks_loop(rows):
                return seconds, True
            enough = seconds >= min(elsewhere, costs.on_loop_seconds)
            if enough or rows > costs.on_loop_rows or not self._queue.count:
                return seconds, False
            most = costs.full_batch

    def _end_turn(self) -> None:
        costs = self._costs
        self.worked += self._batch.count
        self._ended += self._batch.count
        for arrived, count in self._batch.middles():
            seconds = self._turn_ends - arrived + costs.overhead_seconds
            if seconds > costs.deadline_seconds:
                self._tally.expired += count
            else:
                self._tally.serve_late(seconds, count)
        self._batch = Cohorts()
