"""One scenario: traffic against a cluster of pods that an autoscaler sizes.

Pods, probes, syncs and rollouts are discrete events (simpy); requests are followed one by one, or as a fluid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simpy

from loadtests.simulation.autoscaler import SYNC_SECONDS, Autoscaler, Spec
from loadtests.simulation.cluster import Cluster, ClusterOptions, Metric
from loadtests.simulation.costs import PodCosts
from loadtests.simulation.fluid_pod import FluidPod, FluidTally
from loadtests.simulation.pod import Process, RequestPod, poisson
from loadtests.simulation.stationary import Stationary
from loadtests.simulation.tally import Floats, Latencies, Tally

AnyCluster = Cluster[RequestPod] | Cluster[FluidPod]
COLUMNS = ("seconds", "rate", "answered", "lost", "waiting", "ready", "replicas", "p99")


@dataclass(frozen=True)
class Rollout:
    """A rolling update and its start time."""

    at_seconds: float
    max_surge: int = 1
    max_unavailable: int = 0


@dataclass(frozen=True)
class Scenario:
    """Traffic and cluster. rate: one-image requests per second at a time in seconds.

    spec: the autoscaler's, None for a fixed number of replicas. tick_seconds: step of the fluid and of the
    plot.
    """

    name: str
    seconds: float
    rate: Callable[[float], float]
    replicas: int
    options: ClusterOptions
    spec: Spec | None = None
    metric: Metric = "cpu"
    rollout: Rollout | None = None
    tick_seconds: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """The result of a scenario. series: each of COLUMNS, (ticks,); rates are per second.

    waiting: requests in flight at the end. pod_seconds: the sum over the pods, each from its order to its
    end.
    """

    scenario: Scenario
    tally: Tally
    series: dict[str, Floats]
    waiting: float
    pod_seconds: float

    @property
    def lost(self) -> float:
        """Requests without a result: shed, expired or refused."""
        return self.tally.shed + self.tally.expired + self.tally.refused


class _Recorder:
    """Records, every tick, what changed since the last one."""

    def __init__(self, scenario: Scenario, tally: Tally) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.pod_seconds = 0.0
        self._scenario = scenario
        self._tally = tally
        self._answered = self._lost = 0.0
        self._counts = tally.latencies.counts.copy()

    def note(self, now: float, cluster: AnyCluster) -> None:
        tick, tally = self._scenario.tick_seconds, self._tally
        lost = tally.shed + tally.expired + tally.refused
        window = Latencies()
        window.counts = tally.latencies.counts - self._counts
        self._counts = tally.latencies.counts.copy()
        waiting = sum(slot.pod.waiting for slot in cluster.slots)
        answered_rate, lost_rate = (tally.answered - self._answered) / tick, (lost - self._lost) / tick
        self._answered, self._lost = tally.answered, lost
        self.pod_seconds += len(cluster.slots) * tick
        ready = cluster.count("ready")
        counts = (waiting, ready, cluster.replicas)
        rate = self._scenario.rate(now)
        self.rows.append((now, rate, answered_rate, lost_rate, *counts, window.quantile(0.99)))


def simulate(scenario: Scenario, costs: PodCosts, usual: Stationary | None, seed: int) -> Outcome:
    """Run a scenario. usual: latencies for the fluid model; None follows every request.

    The same seed gives the same outcome. Raises ValueError if a sync is not a whole number of ticks, because
    the autoscaler would then see a metric that jumps.
    """
    ticks = SYNC_SECONDS / scenario.tick_seconds
    if scenario.spec is not None and abs(ticks - round(ticks)) > 1e-9:
        raise ValueError(f"tick is {scenario.tick_seconds:g} s, expected a divisor of {SYNC_SECONDS:g} s")
    rng = np.random.default_rng(seed)
    env = simpy.Environment()
    if usual is None:
        tally = Tally()
        cluster = Cluster(
            env, scenario.options, lambda: RequestPod(env, costs, tally), scenario.replicas, rng
        )
        env.process(poisson(env, scenario.rate, lambda: _send(cluster, tally, rng), rng))
        recorder = _Recorder(scenario, tally)
        env.process(_watch(env, scenario.tick_seconds, cluster, recorder))
        return _run(env, scenario, costs, cluster, tally, recorder)
    fluid = FluidTally(usual)
    pods = Cluster(env, scenario.options, lambda: FluidPod(costs, fluid), scenario.replicas, rng)
    recorder = _Recorder(scenario, fluid)
    env.process(_flow(env, scenario, pods, fluid, recorder, rng))
    return _run(env, scenario, costs, pods, fluid, recorder)


def _run(
    env: simpy.Environment,
    scenario: Scenario,
    costs: PodCosts,
    cluster: AnyCluster,
    tally: Tally,
    recorder: _Recorder,
) -> Outcome:
    if scenario.spec is not None:
        autoscaler = Autoscaler(scenario.spec)
        syncs = cluster.autoscale(autoscaler, scenario.metric, costs.saturation_rate)
        env.process(_after(env, scenario.tick_seconds / 2, syncs))  # so that each sync sees whole ticks
    if scenario.rollout is not None:
        env.process(_later(env, scenario.rollout, cluster))
    env.run(until=scenario.seconds + scenario.tick_seconds / 2)
    columns = np.array(recorder.rows).T
    waiting = float(sum(slot.pod.waiting for slot in cluster.slots))
    return Outcome(scenario, tally, dict(zip(COLUMNS, columns, strict=True)), waiting, recorder.pod_seconds)


def _later(env: simpy.Environment, rollout: Rollout, cluster: AnyCluster) -> Process:
    yield env.timeout(rollout.at_seconds)
    yield env.process(cluster.roll_out(rollout.max_surge, rollout.max_unavailable))


def _after(env: simpy.Environment, seconds: float, process: Process) -> Process:
    yield env.timeout(seconds)
    yield from process


def _send(cluster: Cluster[RequestPod], tally: Tally, rng: np.random.Generator) -> None:
    """Send one request to a random pod, as kube-proxy picks one for each connection."""
    routed = cluster.routed
    slot = routed[int(rng.integers(len(routed)))] if routed else None
    if slot is None or slot.state == "closed":
        tally.arrived += 1
        tally.refused += 1
    else:
        slot.pod.send()


def _watch(env: simpy.Environment, tick: float, cluster: Cluster[RequestPod], recorder: _Recorder) -> Process:
    while True:
        yield env.timeout(tick)
        recorder.note(env.now, cluster)


def _flow(
    env: simpy.Environment,
    scenario: Scenario,
    cluster: Cluster[FluidPod],
    tally: FluidTally,
    recorder: _Recorder,
    rng: np.random.Generator,
) -> Process:
    """Every tick, spread its requests evenly over the pods that balancers send to."""
    tick = scenario.tick_seconds
    while True:
        yield env.timeout(tick)
        arrived = float(rng.poisson(scenario.rate(env.now - tick / 2) * tick))
        routed = len(cluster.routed)
        each = arrived / routed if routed else 0.0
        refused = 0.0 if routed else arrived
        for slot in list(cluster.slots):
            requests = each if slot.routed else 0.0
            if slot.state == "closed" and slot.routed:
                refused, requests = refused + requests, 0.0
            slot.pod.step(env.now, tick, requests)
        tally.arrived += refused
        tally.refused += refused
        tally.flush()
        recorder.note(env.now, cluster)
