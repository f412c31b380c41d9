"""Counts of simulated requests by what became of them, and a histogram of their latencies."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Latencies:
    """A histogram of latencies in seconds, with bins of 2.3 %, that counts fractions of requests too."""

    LOW, BINS = 1e-5, 800
    PER_LOG = BINS / math.log(1e8)
    EDGES = np.geomspace(LOW, LOW * 1e8, BINS + 1)

    def __init__(self) -> None:
        self.counts: Floats = np.zeros(self.BINS)

    def add_one(self, seconds: float) -> None:
        """Count one request with this latency."""
        place = int(math.log(max(seconds, self.LOW) / self.LOW) * self.PER_LOG)
        self.counts[min(place, self.BINS - 1)] += 1

    def add(self, seconds: Floats, counts: Floats) -> None:
        """Count requests: one number per latency."""
        places = np.searchsorted(self.EDGES, np.maximum(seconds, self.LOW), side="right") - 1
        np.add.at(self.counts, np.minimum(places, self.BINS - 1), counts)

    def quantile(self, level: float) -> float:
        """The latency below which this fraction of the requests lies; nan without requests."""
        if not self.counts.sum():
            return float("nan")
        below = np.cumsum(self.counts) / self.counts.sum()
        place = int(np.searchsorted(below, level))
        return math.sqrt(self.EDGES[place] * self.EDGES[place + 1])

    def share_above(self, seconds: float) -> float:
        """The fraction of the requests that took longer."""
        total = self.counts.sum()
        return (
            float(self.counts[int(np.searchsorted(self.EDGES, seconds)) + 1 :].sum() / total)
            if total
            else 0.0
        )


@dataclass
class Tally:
    """Counts of requests by result. shed: answered 429. refused: sent to a pod that had closed its port."""

    arrived: float = 0.0
    answered: float = 0.0
    shed: float = 0.0
    expired: float = 0.0
    refused: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)

    def since(self, earlier: "Tally") -> "Tally":
        """The counts since an earlier copy of this tally."""
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
