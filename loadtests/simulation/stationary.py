"""The latencies and the work of one pod at steady load, as a table over its utilisation."""

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
    """A pod at steady load, from `RequestPod`.

    seconds: latencies, (utilisations, levels). work: by part, per second, (utilisations,).
    """

    seconds: Floats
    work: dict[str, Floats]

    def work_at(self, utilisation: float) -> dict[str, float]:
        """The work by part, per second."""
        places = (0.0, *UTILISATIONS)
        return {
            part: float(np.interp(utilisation, places, [0.0, *shares])) for part, shares in self.work.items()
        }

    def at(self, utilisation: float) -> Floats:
        """The latencies at LEVELS, (levels,)."""
        place = float(np.interp(utilisation, UTILISATIONS, np.arange(len(UTILISATIONS))))
        low = int(place)
        high = min(low + 1, len(UTILISATIONS) - 1)
        mixed: Floats = self.seconds[low] + (place - low) * (self.seconds[high] - self.seconds[low])
        return mixed


def stationary(costs: PodCosts, seed: int, requests: int = 20_000) -> Stationary:
    """Simulate one pod at each of UTILISATIONS, for about this many requests."""
    rows, work = [], []
    for part in UTILISATIONS:
        latencies, shares = steady(costs, part * costs.saturation_rate, seed, requests)
        rows.append([latencies.quantile(level) for level in LEVELS])
        work.append(shares)
    return Stationary(np.array(rows), {part: np.array([each[part] for each in work]) for part in work[0]})


def steady_latencies(costs: PodCosts, rate: float, seed: int, requests: int) -> Latencies:
    """Latencies of one pod at a steady rate, over about this many requests."""
    return steady(costs, rate, seed, requests)[0]


def steady(costs: PodCosts, rate: float, seed: int, requests: int) -> tuple[Latencies, dict[str, float]]:
    """Latencies of one pod at a steady rate, and the work of its parts per second."""
    tally = Tally()
    env = simpy.Environment()
    pod = RequestPod(env, costs, tally)
    env.process(poisson(env, lambda _: rate, pod.send, np.random.default_rng(seed)))
    env.run(until=requests / rate)
    return tally.latencies, {
        part: seconds / env.now for part, seconds in pod.counts(env.now).work_seconds.items()
    }
