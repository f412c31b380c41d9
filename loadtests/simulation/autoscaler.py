"""What Kubernetes' HorizontalPodAutoscaler (autoscaling/v2) decides: pure, with the time as an argument.

After https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ and, where that
text is silent, kubernetes/kubernetes pkg/controller/podautoscaler/{replica_calculator,horizontal}.go.
Knows nothing of pods beyond their number and their metric.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

SYNC_SECONDS = 15.0
"""`--horizontal-pod-autoscaler-sync-period`, its default."""

TOLERANCE = 0.1
"""`--horizontal-pod-autoscaler-tolerance`, its default."""

_EXACT = 1e-9
"""Ratios that are whole but for rounding (0.6 * 5 / 0.3 pods) must not be rounded up to one pod more."""


@dataclass(frozen=True)
class Policy:
    """How far the replicas may move: `value` pods or percent within the last `period_seconds`."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_seconds: float


@dataclass(frozen=True)
class Rules:
    """One direction's `behavior`. select: which policy counts where there are several."""

    policies: tuple[Policy, ...]
    stabilization_window_seconds: float
    select: Literal["Max", "Min", "Disabled"] = "Max"


SCALE_UP = Rules((Policy("Percent", 100, 15), Policy("Pods", 4, 15)), 0)
SCALE_DOWN = Rules((Policy("Percent", 100, 15),), 300)
"""The defaults of autoscaling/v2."""


@dataclass(frozen=True)
class Spec:
    """A HorizontalPodAutoscaler. target: the wanted average of the metric over the pods."""

    min_replicas: int
    max_replicas: int
    target: float
    scale_up: Rules = SCALE_UP
    scale_down: Rules = SCALE_DOWN
    tolerance: float = TOLERANCE


def recommend(
    current: int, metrics: Sequence[float], unready: int, target: float, tolerance: float = TOLERANCE
) -> int:
    """Replicas for a metric: ceil(pods * average / target), unless the ratio is within the tolerance.

    metrics: one value for each ready pod. unready: pods that start; they are left out at first, and
    taken to use nothing if the others want more pods, so that a start under way is not ordered twice.
    """
    if not metrics:
        return current
    ratio = sum(metrics) / len(metrics) / target
    counted = len(metrics)
    if unready and ratio > 1:
        counted += unready
        adjusted = sum(metrics) / counted / target
        if adjusted < 1:
            return current
        ratio = adjusted
    if abs(ratio - 1) <= tolerance + _EXACT:
        return current
    replicas = math.ceil(ratio * counted - _EXACT)
    if unready and ratio > 1 and replicas < current:
        return current
    return replicas


@dataclass
class Autoscaler:
    """The controller's memory between two syncs: what it recommended, and how it scaled."""

    spec: Spec
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _scaled: list[tuple[float, int]] = field(default_factory=list)

    def sync(self, now: float, current: int, metrics: Sequence[float], unready: int) -> int:
        """The replicas to have from now on. now: seconds, never less than in the call before."""
        wanted = recommend(current, metrics, unready, self.spec.target, self.spec.tolerance)
        stable = self._stabilize(now, current, wanted)
        limited = self._limit_rate(now, current, stable)
        replicas = min(max(limited, self.spec.min_replicas), self.spec.max_replicas)
        if replicas != current:
            self._scaled.append((now, replicas - current))
        return replicas

    def _stabilize(self, now: float, current: int, wanted: int) -> int:
        """The least of the up window bounds growth, the most of the down window bounds shrinking."""
        up, down = self.spec.scale_up, self.spec.scale_down
        longest = max(up.stabilization_window_seconds, down.stabilization_window_seconds)
        self._recommended = [(at, value) for at, value in self._recommended if at > now - longest]
        floor = min([wanted, *self._since(now - up.stabilization_window_seconds)])
        ceiling = max([wanted, *self._since(now - down.stabilization_window_seconds)])
        self._recommended.append((now, wanted))
        return min(max(current, floor), ceiling)

    def _since(self, cutoff: float) -> Iterable[int]:
        return (value for at, value in self._recommended if at > cutoff)

    def _limit_rate(self, now: float, current: int, wanted: int) -> int:
        rules = self.spec.scale_up if wanted > current else self.spec.scale_down
        if wanted == current or rules.select == "Disabled":
            return current
        grows = wanted > current
        limits = [self._limit(policy, now, current, grows) for policy in rules.policies]
        furthest: Callable[[list[int]], int] = max if grows == (rules.select == "Max") else min
        limit = furthest(limits)
        return min(wanted, max(limit, current)) if grows else max(wanted, min(limit, current))

    def _limit(self, policy: Policy, now: float, current: int, grows: bool) -> int:
        """How far the policy allows, counted from the replicas at the start of its period."""
        start = current - sum(change for at, change in self._scaled if at > now - policy.period_seconds)
        if policy.kind == "Pods":
            return start + policy.value if grows else start - policy.value
        # Both round towards more change, so that a small percentage never means no change at all.
        if grows:
            return math.ceil(start * (1 + policy.value / 100) - _EXACT)
        return int(start * (1 - policy.value / 100) + _EXACT)
