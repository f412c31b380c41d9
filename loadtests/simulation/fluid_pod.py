"""A pod as a fluid: `FluidPod` moves numbers of requests, for rates at which single requests are too many."""

import math
from collections import deque

import numpy as np

from loadtests.simulation.costs import PodCosts
from loadtests.simulation.stationary import SHARES, Stationary
from loadtests.simulation.tally import Tally


class FluidTally(Tally):
    """A tally for many pods that do the same: their latencies are added up once a tick."""

    def __init__(self, usual: Stationary) -> None:
        super().__init__()
        self._usual = usual
        self._served: dict[float, float] = {}
        self._late: dict[float, float] = {}

    def serve(self, utilisation: float, count: float) -> None:
        """Requests that found no backlog in a pod that is this busy."""
        self.answered += count
        _add(self._served, round(utilisation, 3), count)

    def serve_late(self, seconds: float, count: float) -> None:
        """Requests that a backlog made take so long."""
        self.answered += count
        _add(self._late, round(seconds, 5), count)

    def flush(self) -> None:
        """Add up the tick's latencies."""
        for utilisation, count in self._served.items():
            self.latencies.add(self._usual.at(utilisation), count * SHARES)
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
        """So many came evenly between two times, later than all before."""
        if count > 0:
            self._spans.append((begin, end, count))
            self.count += count

    def take(self, count: float) -> "Cohorts":
        """Take the oldest, so many or all."""
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
        """How many came before a time."""
        return sum(count * _part(begin, end, time) for begin, end, count in self._spans)

    def join(self, others: "Cohorts") -> None:
        """Append later ones."""
        for span in others._spans:
            self.add(*span)

    def middles(self) -> list[tuple[float, float]]:
        """Each cohort's mean arrival, and its number."""
        return [((begin + end) / 2, count) for begin, end, count in self._spans]


def _part(begin: float, end: float, time: float) -> float:
    return 1.0 if end <= time else max(0.0, (time - begin) / (end - begin))


class FluidPod:
    """A pod as numbers of requests. With a backlog it goes round as `RequestPod`'s loop does.

    In each turn what has come is read, as much as the queue holds is queued and the rest refused, and a batch
    is run and answered: one after another where the loop runs the batch, else at the same time. Where the
    loop runs batches and took longer for the rest, it runs several.
    Without a backlog a tick's requests are served in it, and their latency is `Stationary`'s; a tick should
    be long enough that their number is steady, for chance is in that already.
    """

    def __init__(self, costs: PodCosts, tally: FluidTally) -> None:
        self.offered = self.worked = 0.0
        self._costs = costs
        self._tally = tally
        self._unread = Cohorts()
        self._queue = Cohorts()
        self._batch = Cohorts()
        self._turn_ends = 0.0
        self._answer_seconds = 0.0

    @property
    def waiting(self) -> float:
        """Requests that are inside, whether unread, queued or in a batch."""
        return self._unread.count + self._queue.count + self._batch.count

    def step(self, now: float, seconds: float, requests: float) -> None:
        """Take what arrived in the tick that ends now, serve what could be served in it."""
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
                return
            self._begin_turn()

    def _is_light(self) -> bool:
        """Whether all that waits fits into one batch."""
        return self._queue.count + self._unread.before(self._turn_ends) <= self._costs.full_batch

    def _serve_all(self, utilisation: float) -> None:
        count = self._queue.count + self._unread.count
        self._queue, self._unread = Cohorts(), Cohorts()
        self.worked += count
        if count:
            self._tally.serve(utilisation, count)

    def _begin_turn(self) -> None:
        costs, came = self._costs, self._unread.before(self._turn_ends)
        room = max(0.0, costs.most_waiting - self._queue.count)
        read = self._unread.take(min(came, room))
        shed = self._unread.take(came - read.count).count
        self._tally.shed += shed
        self.worked += shed * costs.refuse_seconds * costs.saturation_rate
        self._queue.join(read)
        reading = shed * costs.refuse_seconds + read.count * costs.request_seconds / 2
        device, beside = self._run_batches(self._answer_seconds + reading, refusing=shed > 0)
        self._answer_seconds = costs.turn_seconds + self._batch.count * costs.request_seconds / 2
        loop = reading + self._answer_seconds
        self._turn_ends += max(loop, device) if beside else loop + device

    def _run_batches(self, elsewhere: float, *, refusing: bool) -> tuple[float, bool]:
        """Take a turn's batches from the queue: how long they run, and whether beside the loop.

        elsewhere: what the rest of the loop took since the last turn's batches. refusing cuts the first.
        """
        costs, seconds = self._costs, 0.0
        most = costs.most_inline(refusing=refusing) or costs.full_batch
        while True:
            batch = self._queue.take(most)
            rows = max(1, math.ceil(batch.count - 1e-9))
            seconds += costs.device_seconds(rows)
            self._batch.join(batch)
            if not costs.in_turns(rows):
                return seconds, True
            enough = seconds >= min(elsewhere, costs.inline_seconds)
            if enough or rows > costs.inline_rows or not self._queue.count:
                return seconds, False
            most = costs.full_batch

    def _end_turn(self) -> None:
        costs = self._costs
        self.worked += self._batch.count
        for arrived, count in self._batch.middles():
            seconds = self._turn_ends - arrived + costs.overhead_seconds
            if seconds > costs.deadline_seconds:
                self._tally.expired += count
            else:
                self._tally.serve_late(seconds, count)
        self._batch = Cohorts()
