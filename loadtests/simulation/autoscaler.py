"""The decisions of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2), with the time as an argument.

Follows https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ and, where that
page is silent, kubernetes/kubernetes pkg/controller/podautoscaler/{replica_calculator,horizontal}.go. Knows
nothing of pods but their number and their metric.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

SYNC_SECONDS = 15.0
"""The default of `--horizontal-pod-autoscaler-sync-period`."""

TOLERANCE = 0.1
"""The default of `--horizontal-pod-autoscaler-tolerance`."""

_EXACT = 1e-9
"""Ratios that are whole except for rounding errors (0.6 * 5 / 0.3) must not be rounded up to one more pod."""


@dataclass(frozen=True)
class Policy:
    """How far the replicas may move: `value` pods or percent within the last `period_seconds`."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_seconds: float


@dataclass(frozen=True)
class Rules:
    """The `behavior` of one direction. select: which of several policies applies."""

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

    metrics: one value per ready pod. unready: the number of starting pods; they are left out at first, and
    count as using nothing if the others need more pods, so that no pod is ordered twice while it starts.
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
    """The controller's state between two syncs: its recommendations and its changes of scale."""

    spec: Spec
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _scaled: list[tuple[float, int]] = field(default_factory=list)

    def sync(self, now: float, current: int, metrics: Sequence[float], unready: int) -> int:
        """The replicas from now on. now: seconds, never less than in the previous call."""
        wanted = recommend(current, metrics, unready, self.spec.target, self.spec.tolerance)
        stable = self._stabilize(now, current, wanted)
        limited = self._limit_rate(now, current, stable)
        replicas = min(max(limited, self.spec.min_replicas), self.spec.max_replicas)
        if replicas != current:
            self._scaled.append((now, replicas - current))
        return replicas

    def _stabilize(self, now: float, current: int, wanted: int) -> int:
        """Limit growth to the minimum of the up window, and shrinking to the maximum of the down window."""
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
        """The replicas that the policy allows, from those at the start of its period."""
        start = current - sum(change for at, change in self._scaled if at > now - policy.period_seconds)
        if policy.kind == "Pods":
            return start + policy.value if grows else start - policy.value
        # Both directions round towards more change, so that a small percentage still allows some.
        if grows:
            return math.ceil(start * (1 + policy.value / 100) - _EXACT)
        return int(start * (1 - policy.value / 100) + _EXACT)
