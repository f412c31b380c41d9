"""A Deployment's pods over time: they start, receive requests, drain and stop, as an Autoscaler decides.

Knows nothing of what a pod does with its requests.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import simpy

from loadtests.simulation.autoscaler import SYNC_SECONDS, Autoscaler
from loadtests.simulation.service_rules import GAUGE_SECONDS, Counts, LoadMeter

State = Literal["starting", "ready", "draining", "closed"]
Metric = Literal["cpu", "requests", "load"]
Process = Generator[simpy.Event, None, None]

ROLLOUT_POLL_SECONDS = 1.0
"""How soon a rollout notices a pod that became ready; the real controller is notified."""


class Pod(Protocol):
    """What the cluster reads of a pod. offered: requests so far; worked: their work, in requests answered."""

    offered: float
    worked: float

    @property
    def waiting(self) -> float:
        """Requests in flight."""
        ...

    def counts(self, now: float) -> Counts:
        """What the service would have counted by now."""
        ...


P = TypeVar("P", bound=Pod)


@dataclass(frozen=True)
class ClusterOptions:
    """How pods start and stop, in seconds.

    start_seconds: process to ready; probe_seconds: period of the readiness probe, whose phase is random.
    image_seconds: to pull the image; node_seconds: to add a node, if none has room.
    room: pods that fit on the nodes at the beginning; nodes that were added stay.
    endpoint_seconds: until every balancer knows that a pod stops; drain_seconds: how long it serves
    meanwhile.
    """

    start_seconds: float
    probe_seconds: float = 5.0
    image_seconds: float = 5.0
    node_seconds: float = 90.0
    room: int = 0
    endpoint_seconds: float = 5.0
    drain_seconds: float = 10.0


@dataclass
class Slot(Generic[P]):
    """One pod's place in the cluster. routed: whether balancers send it requests."""

    pod: P
    state: State = "starting"
    routed: bool = False
    offered_before: float = 0.0
    worked_before: float = 0.0
    meter: LoadMeter = field(default_factory=lambda: LoadMeter(max_queued=1))


class Cluster(Generic[P]):
    """The pods, and the processes that start, stop and replace them."""

    def __init__(
        self,
        env: simpy.Environment,
        options: ClusterOptions,
        make_pod: Callable[[], P],
        replicas: int,
        rng: np.random.Generator,
    ) -> None:
        """Start with this many ready pods."""
        self.replicas = replicas
        self._env = env
        self._options = options
        self._make_pod = make_pod
        self.slots: list[Slot[P]] = [self._slot("ready", routed=True) for _ in range(replicas)]
        self._rng = rng
        self._room = max(options.room, replicas)

    @property
    def routed(self) -> list[Slot[P]]:
        """The pods that balancers send requests to, including stopped ones that they still list."""
        return [slot for slot in self.slots if slot.routed]

    def count(self, *states: State) -> int:
        """The number of pods in these states."""
        return sum(slot.state in states for slot in self.slots)

    def scale(self, replicas: int) -> None:
        """Start or stop pods to reach this number; starting pods stop first, then the youngest."""
        self.replicas = replicas
        live = [slot for slot in self.slots if slot.state in ("starting", "ready")]
        for _ in range(replicas - len(live)):
            self.start()
        live.sort(key=lambda slot: slot.state == "starting")
        for slot in live[replicas:]:
            self.stop(slot)

    def start(self) -> None:
        """Order one more pod."""
        slot = self._slot("starting")
        self.slots.append(slot)
        self._env.process(self._begin(slot))

    def _slot(self, state: State, *, routed: bool = False) -> Slot[P]:
        slot = Slot(self._make_pod(), state, routed)
        slot.meter.note(slot.pod.counts(self._env.now))
        return slot

    def stop(self, slot: Slot[P]) -> None:
        """Send SIGTERM to a pod, or abandon one that is starting."""
        if slot.state == "starting":
            slot.state = "closed"
            self.slots.remove(slot)
            return
        slot.state = "draining"
        self._env.process(self._forget(slot))
        self._env.process(self._end(slot))

    def autoscale(self, autoscaler: Autoscaler, metric: Metric, saturation_rate: float) -> Process:
        """Sync every 15 s, on the pods' metric.

        load: the gauge `inkserve_load` as the service computes it. requests, cpu: a pod's rate (of work, for
        cpu) as a fraction of its saturation.
        """
        while True:
            yield self._env.timeout(SYNC_SECONDS)
            values = []
            for slot in self.slots:
                done = self._advance(slot, metric)
                slot.meter.note(slot.pod.counts(self._env.now))
                if slot.state != "ready":
                    continue
                if metric == "load":
                    values.append(slot.meter.over(GAUGE_SECONDS).load)
                else:
                    part = done / SYNC_SECONDS / saturation_rate
                    values.append(min(part, 1.0) if metric == "cpu" else part)
            wanted = autoscaler.sync(self._env.now, self.replicas, values, self.count("starting"))
            if wanted != self.replicas:
                self.scale(wanted)

    def roll_out(self, max_surge: int, max_unavailable: int) -> Process:
        """Replace every current pod, as a Deployment's RollingUpdate does."""
        old = [slot for slot in self.slots if slot.state in ("starting", "ready")]
        while left := [slot for slot in old if slot.state in ("starting", "ready")]:
            new = self.count("starting", "ready") - len(left)
            surge = self.replicas + max_surge - len(left) - new
            for _ in range(min(surge, self.replicas - new)):
                self.start()
            spare = self.count("ready") - (self.replicas - max_unavailable)
            for slot in left[: max(0, spare)]:
                self.stop(slot)
            yield self._env.timeout(ROLLOUT_POLL_SECONDS)

    def _advance(self, slot: Slot[P], metric: Metric) -> float:
        """Requests since the last sync."""
        offered, worked = slot.pod.offered - slot.offered_before, slot.pod.worked - slot.worked_before
        slot.offered_before, slot.worked_before = slot.pod.offered, slot.pod.worked
        return worked if metric == "cpu" else offered

    def _begin(self, slot: Slot[P]) -> Process:
        options = self._options
        if len(self.slots) > self._room:
            self._room = len(self.slots)
            yield self._env.timeout(options.node_seconds)
        phase = float(self._rng.uniform(0, options.probe_seconds))
        yield self._env.timeout(options.image_seconds + options.start_seconds + phase)
        if slot.state == "starting":
            slot.state, slot.routed = "ready", True

    def _forget(self, slot: Slot[P]) -> Process:
        yield self._env.timeout(self._options.endpoint_seconds)
        slot.routed = False
        self._sweep(slot)

    def _end(self, slot: Slot[P]) -> Process:
        """Close the port after the drain; requests in flight are still answered."""
        yield self._env.timeout(self._options.drain_seconds)
        slot.state = "closed"
        while slot.pod.waiting:
            yield self._env.timeout(ROLLOUT_POLL_SECONDS)
        self._sweep(slot)

    def _sweep(self, slot: Slot[P]) -> None:
        if slot.state == "closed" and not slot.routed and not slot.pod.waiting and slot in self.slots:
            self.slots.remove(slot)
