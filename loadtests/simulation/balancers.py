"""Balancers: each picks a pod for a request, by what a real one of its kind knows.

One balancer sends all requests; several that do not know of each other's would see less. Knows nothing of how
pods work.
"""

import heapq
import statistics
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from loadtests.simulation.service_rules import AgentWeight, Load, fields_of

Waiting = Callable[[int], float]
"""Returns the requests in flight at a pod."""

BLACKOUT_SECONDS = 10.0
"""How long a host must have reported before its weight counts: Envoy's default `blackout_period`."""

ERROR_PENALTY = 1.0
"""Envoy's default `error_utilization_penalty`."""


class Balancer(Protocol):
    """Picks a pod, 0..pods-1, for each request."""

    def pick(self, now: float) -> int:
        """Return the pod for a request that comes now."""
        ...

    def resize(self, pods: int) -> None:
        """Send to this many pods from now on; the first ones stay."""
        ...

    def note(self, now: float, loads: Sequence[Load]) -> None:
        """Learn every pod's load, once a second."""
        ...


class RoundRobin:
    """Each pod in its turn."""

    def __init__(self, pods: int) -> None:
        self._pods = pods
        self._next = 0

    def pick(self, _: float) -> int:
        """See `Balancer.pick`."""
        pod = self._next % self._pods
        self._next = pod + 1
        return pod

    def resize(self, pods: int) -> None:
        """See `Balancer.resize`."""
        self._pods = pods

    def note(self, now: float, loads: Sequence[Load]) -> None:
        """See `Balancer.note`: it does not look."""


class LeastRequest:
    """Of two random pods, the one with fewer requests in flight (Mitzenmacher, 1996).

    distinct: the two are never the same pod, as in nginx's `random two least_conn`. Envoy's `LEAST_REQUEST`
    draws the second from all pods again.
    """

    def __init__(self, pods: int, waiting: Waiting, rng: np.random.Generator, *, distinct: bool) -> None:
        self._pods = pods
        self._waiting = waiting
        self._rng = rng
        self._distinct = distinct

    def pick(self, _: float) -> int:
        """See `Balancer.pick`."""
        one = int(self._rng.integers(self._pods))
        if self._distinct and self._pods > 1:
            other = (one + 1 + int(self._rng.integers(self._pods - 1))) % self._pods
        else:
            other = int(self._rng.integers(self._pods))
        return other if self._waiting(other) < self._waiting(one) else one

    def resize(self, pods: int) -> None:
        """See `Balancer.resize`."""
        self._pods = pods

    def note(self, now: float, loads: Sequence[Load]) -> None:
        """See `Balancer.note`: it does not look."""


class Weighted:
    """Each pod in proportion to its weight, as evenly as possible: earliest deadline first, as in Envoy."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = list(weights)
        self._now = 0.0
        self._turns = [(1 / weight, pod) for pod, weight in enumerate(weights)]
        heapq.heapify(self._turns)

    def pick(self, _: float) -> int:
        """See `Balancer.pick`."""
        self._now, pod = self._turns[0]
        heapq.heapreplace(self._turns, (self._now + 1 / self._weights[pod], pod))
        return pod

    def weigh(self, weights: Sequence[float]) -> None:
        """Change the weights; there may be more pods than before. The wait for a turn so far counts."""
        old, self._weights = self._weights, list(weights)
        waits = {pod: at - self._now for at, pod in self._turns}
        self._turns = [
            (self._now + (waits[pod] * old[pod] / weight if pod in waits else 1 / weight), pod)
            for pod, weight in enumerate(weights)
        ]
        heapq.heapify(self._turns)


class ClientSideWeighted:
    """Envoy's `client_side_weighted_round_robin`: weights from the pods' load reports (ORCA).

    A pod weighs its requests per second over its utilization, with its errors added to that; see
    client_side_weighted_round_robin_lb.cc. A pod without a weight gets the median of the others'.
    """

    def __init__(self, pods: int) -> None:
        self._weighted = Weighted([1.0] * pods)
        self._since: list[float | None] = [None] * pods

    def pick(self, now: float) -> int:
        """See `Balancer.pick`."""
        return self._weighted.pick(now)

    def resize(self, pods: int) -> None:
        """See `Balancer.resize`."""
        self._since += [None] * (pods - len(self._since))
        self._weighted.weigh([1.0] * pods)

    def note(self, now: float, loads: Sequence[Load]) -> None:
        """See `Balancer.note`."""
        self._since = [now if since is None else since for since in self._since]
        known = {
            pod: orca_weight(fields_of(loads[pod]))
            for pod, since in enumerate(self._since)
            if since is not None and now - since >= BLACKOUT_SECONDS
        }
        usual = statistics.median(known.values()) if known else 1.0
        self._weighted.weigh([known.get(pod, usual) for pod in range(len(self._since))])


def orca_weight(report: dict[str, float]) -> float:
    """The weight that Envoy computes from a report: requests per second at a utilization of 1."""
    rate = report["rps_fractional"]
    return rate / (report["application_utilization"] + ERROR_PENALTY * report["eps"] / rate)


class AgentChecked:
    """HAProxy's `roundrobin` with agent checks every second, which the service's own code answers."""

    def __init__(self, pods: int) -> None:
        self._agents = [AgentWeight(0.0) for _ in range(pods)]
        self._weighted = Weighted([1.0] * pods)

    def pick(self, now: float) -> int:
        """See `Balancer.pick`."""
        return self._weighted.pick(now)

    def resize(self, pods: int) -> None:
        """See `Balancer.resize`: HAProxy gives a new server its full weight until its first check."""
        self._agents += [AgentWeight(0.0) for _ in range(pods - len(self._agents))]
        self._weighted.weigh([1.0] * pods)

    def note(self, now: float, loads: Sequence[Load]) -> None:
        """See `Balancer.note`."""
        for agent, load in zip(self._agents, loads, strict=True):
            agent.update(load, now)
        self._weighted.weigh([float(agent.line("up")[3:-2]) for agent in self._agents])


class Sticky:
    """kube-proxy: a random pod for each connection, which callers keep. Requests come over a random one.

    age_seconds: `connection_max_age_seconds`: after a random age from half of this to all of it, a connection
    is closed with its next response, and another one is opened. None keeps it for ever.
    """

    def __init__(
        self, pods: int, connections: int, rng: np.random.Generator, age_seconds: float | None = None
    ) -> None:
        self._pods = pods
        self._rng = rng
        self._age_seconds = age_seconds
        self._pod_of = [int(pod) for pod in rng.integers(pods, size=connections)]
        self._until = [self._age() for _ in range(connections)]

    def pick(self, now: float) -> int:
        """See `Balancer.pick`."""
        connection = int(self._rng.integers(len(self._pod_of)))
        pod = self._pod_of[connection]
        if now >= self._until[connection]:
            self._pod_of[connection] = int(self._rng.integers(self._pods))
            self._until[connection] = now + self._age()
        return pod

    def resize(self, pods: int) -> None:
        """See `Balancer.resize`: only new connections reach the new pods."""
        self._pods = pods

    def note(self, now: float, loads: Sequence[Load]) -> None:
        """See `Balancer.note`: it does not look."""

    def _age(self) -> float:
        return float("inf") if self._age_seconds is None else self._age_seconds * self._rng.uniform(0.5, 1.0)
