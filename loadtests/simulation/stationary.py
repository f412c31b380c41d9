"""The latencies of one pod at steady load, as a table over its utilisation."""

from dataclasses import dataclass

import numpy as np
import simpy

from loadtests.simulation.costs import PodCosts
from loadtests.simulation.pod import RequestPod, poisson
from loadtests.simulation.tally import Floats, Latencies, Tally

UTILISATIONS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEVELS = np.array([*np.arange(0.5, 99.0) / 100, 0.9925, 0.9975])
"""The quantiles that represent a distribution, each in the middle of its fraction (1 %, at the end 0.5 %)."""
SHARES = np.array([*np.full(99, 0.01), 0.005, 0.005])


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
    """Simulate one pod at each of UTILISATIONS, for about this many requests."""
    rows = [steady_latencies(costs, part * costs.saturation_rate, seed, requests) for part in UTILISATIONS]
    return Stationary(np.array([[each.quantile(level) for level in LEVELS] for each in rows]))


def steady_latencies(costs: PodCosts, rate: float, seed: int, requests: int) -> Latencies:
    """Latencies of one pod at a steady rate, over about this many requests."""
    tally = Tally()
    env = simpy.Environment()
    pod = RequestPod(env, costs, tally)
    env.process(poisson(env, lambda _: rate, pod.send, np.random.default_rng(seed)))
    env.run(until=requests / rate)
    return tally.latencies
