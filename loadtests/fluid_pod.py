"""A pod as a fluid: `FluidPod` moves numbers of requests, for rates at which single requests are too many."""

from collections import deque

from loadtests.pod import SHARES, PodCosts, Stationary, Tally


class FluidTally(Tally):
    """A tally for many pods that do the same: their latencies are added up once a tick."""

    def __init__(self, usual: Stationary) -> None:
        super().__init__()
        self._usual = usual
        self._served: dict[tuple[float, float], float] = {}

    def serve(self, waited: float, utilisation: float, count: float) -> None:
        """Requests that waited so long behind a backlog in a pod that is this busy."""
        self.answered += count
        key = (round(waited, 6), round(utilisation, 3))
        self._served[key] = self._served.get(key, 0.0) + count

    def flush(self) -> None:
        """Add up the tick's latencies."""
        for (waited, utilisation), count in self._served.items():
            self.latencies.add(waited + self._usual.at(utilisation), count * SHARES)
        self._served.clear()


class FluidPod:
    """A pod as a number of requests that wait, first come first served, in cohorts of one tick.

    Each passes the device once or, where that is the slower one, the event loop twice. Follows what a
    backlog does; the latency of a pod without one is `Stationary`'s.
    """

    def __init__(self, costs: PodCosts, tally: FluidTally) -> None:
        self.offered = self.worked = 0.0
        self.waiting = 0.0
        self._costs = costs
        self._tally = tally
        self._passes = 1 if costs.sheds else 2
        self._cohorts: deque[tuple[float, float, int]] = deque()

    def step(self, now: float, seconds: float, requests: float) -> None:
        """Take what arrived in the tick that ends now, serve what could be served in it."""
        self.offered += requests
        self._tally.arrived += requests
        if requests:
            self._cohorts.append((now, requests, 1))
            self.waiting += requests
        self._expire(now)
        self._serve(now, seconds)
        self._shed()

    def _serve(self, now: float, seconds: float) -> None:
        capacity = self._costs.saturation_rate * seconds
        utilisation = min(self.waiting / capacity, 1.0)
        while capacity > 1e-9 and self._cohorts:
            arrived, count, turn = self._cohorts.popleft()
            done = min(count, capacity * self._passes)
            if done < count:
                self._cohorts.appendleft((arrived, count - done, turn))
            capacity -= done / self._passes
            self.worked += done / self._passes
            if now - arrived >= self._costs.deadline_seconds:
                self._tally.expired += done
                self._leave(done)
            elif turn < self._passes:
                self._cohorts.append((arrived, done, turn + 1))
            else:
                self._tally.serve(now - arrived, utilisation, done)
                self._leave(done)

    def _expire(self, now: float) -> None:
        """Deadlines are watched in the queue only, not before it."""
        oldest = now - self._costs.deadline_seconds
        while self._costs.sheds and self._cohorts and self._cohorts[0][0] <= oldest:
            _, count, _ = self._cohorts.popleft()
            self._leave(count)
            self._tally.expired += count

    def _shed(self) -> None:
        """What does not fit is refused at its arrival: the youngest cohort's."""
        excess = self.waiting - self._costs.max_queue_rows
        if excess > 0 and self._costs.sheds:
            arrived, count, turn = self._cohorts.pop()
            self._cohorts.append((arrived, count - excess, turn))
            self._leave(excess)
            self._tally.shed += excess

    def _leave(self, count: float) -> None:
        self.waiting = self.waiting - count if self._cohorts else 0.0
