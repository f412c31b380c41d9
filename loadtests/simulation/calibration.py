"""A pod's costs, from what a running one took under loads of one-image requests.

The loads are those that the model is for. One caller's large batches cost less than the same rows from many
callers, whose HTTP between the batches leaves the processor's caches to others: 35 us a row and not 41.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loadtests.measured_pod import MeasuredPod, Spent, Step
from loadtests.progress import doing, say
from loadtests.simulation.costs import PodCosts
from loadtests.simulation.service_rules import INLINE_ROWS, default_threads

CALLERS = (1, 2, 4, 16, 64, 256)
"""Who each wait for their answer: batches from one row to half of the callers or all."""

REFUSED_CALLERS = 1024
"""More than may wait: the rest is refused, and asks again at once. A service that may queue one request does
little but refuse, for 11 us each; beside batches of 113 rows a refusal took 18 us, of 66 rows 24 us."""

FEW = 0.1
"""Of the answered."""

LARGE_ROWS = 256
"""Of requests that show whether a service keeps its batches smaller than the model takes them to be."""


BUSY = "the batches took longer than the thread that ran them: is the machine busy?"


@dataclass(frozen=True)
class Calibration:
    """What the costs follow from. answering, refusing: under each of CALLERS, and REFUSED_CALLERS.

    largest_batch: of how many rows, if LARGE_ROWS come in a request. cores: that the pod has.
    """

    answering: list[Spent]
    refusing: Spent
    largest_batch: int
    cores: int

    @property
    def unloaded_seconds(self) -> float:
        """The median latency of a lone caller."""
        return self.answering[0].step.p50_seconds

    @property
    def answered_rate(self) -> float:
        """Requests per second, where most were answered of all loads."""
        return max(spent.step.answered_rate for spent in self.answering)

    def speed_change(self, after: Spent) -> float:
        """By what part more the most CALLERS got later than here: the machine is not always as fast."""
        return after.step.answered_rate / self.answering[-1].step.answered_rate - 1

    def speed(self, spent: Spent, costs: PodCosts) -> float:
        """How fast the machine was under a load, where the costs are those of 1.

        What its batches and requests should have taken, by what they took; latencies have no part in it.
        """
        expected = (
            spent.batches * (costs.batch_seconds + costs.turn_seconds)
            + spent.padded_rows * costs.row_seconds
            + spent.rows * costs.request_seconds
            + spent.refused * costs.refuse_seconds
        )
        return expected / (self._device_seconds(spent) + self._loop_seconds(spent))

    def loop_share(self, spent: Spent) -> float:
        """The part of the batches that the main thread ran.

        Where onnxruntime has no threads of its own, what other threads computed were the other batches. Else
        what the service would have done with such batches.
        """
        if self._has_threads:
            return float(spent.rows <= self._device_costs().inline_rows * spent.batches)
        others = (spent.cpu_seconds - spent.main_cpu_seconds) / _with_core(spent)
        return min(1.0, max(0.0, 1.0 - others))

    def costs(self, start_seconds: float) -> PodCosts:
        """The model's costs. Raises ValueError where the loop had no time left beside its batches.

        The event loop's are its thread's CPU time less its part of the batches that ran on it. That part is
        what they took by the clock, for onnxruntime's other threads do theirs at the same time, less the time
        without a core. Where too few were refused to tell, a refusal is taken to cost as much as an answer.
        """
        costs = self._device_costs()
        loads = self.answering
        turn_seconds, request_seconds = _fit(
            [load.rows / load.batches for load in loads],
            [self._loop_seconds(load) / load.batches for load in loads],
        )
        refusing, refuse_seconds = self.refusing, request_seconds
        if refusing.refused > FEW * refusing.answered:
            answering_seconds = refusing.batches * turn_seconds + refusing.answered * request_seconds
            refuse_seconds = (self._loop_seconds(refusing) - answering_seconds) / refusing.refused
        if refuse_seconds <= 0:
            raise ValueError(BUSY)
        overhead = self.unloaded_seconds - turn_seconds - request_seconds - costs.device_seconds(1)
        return replace(
            costs,
            turn_seconds=turn_seconds,
            request_seconds=request_seconds,
            refuse_seconds=refuse_seconds,
            overhead_seconds=max(0.0, overhead),
            start_seconds=start_seconds,
        )

    @property
    def _has_threads(self) -> bool:
        return default_threads(self.cores) > 1

    def _device_costs(self) -> PodCosts:
        """The line through the batches, everything else 0."""
        batch_seconds, row_seconds = _fit(
            [load.padded_rows / load.batches for load in self.answering],
            [self._device_seconds(load) / load.batches for load in self.answering],
        )
        costs = PodCosts(batch_seconds, row_seconds, 0.0, 0.0, 0.0, 0.0, 0.0, cores=self.cores)
        if self.largest_batch < INLINE_ROWS:  # larger ones may have been cut to fit the loop
            return replace(costs, max_batch_size=self.largest_batch)
        return costs

    def _device_seconds(self, spent: Spent) -> float:
        """All batches, without the time for which the loop had the core that they share."""
        if self._has_threads:
            return spent.compute_seconds
        return max(_with_core(spent), spent.cpu_seconds - spent.main_cpu_seconds)

    def _loop_seconds(self, spent: Spent) -> float:
        return spent.main_cpu_seconds - self.loop_share(spent) * _with_core(spent)


def calibrate(pod: MeasuredPod, cores: int) -> Calibration:
    """Load a running pod. Raises ValueError if nobody is answered."""
    answering = [_spend(pod, callers) for callers in CALLERS]
    if not all(load.answered for load in answering):
        raise ValueError("a load was not answered in its time: is the machine busy?")
    refusing = _spend(pod, REFUSED_CALLERS)
    with doing(f"requests of {LARGE_ROWS} images"):
        return Calibration(answering, refusing, pod.largest_batch(LARGE_ROWS), cores)


def _spend(pod: MeasuredPod, callers: int) -> Spent:
    with doing(f"{callers} callers"):
        spent = pod.spend(callers)
    say(f"{callers} callers: {spent.step.answered_rate:,.0f} requests/s answered")
    return spent


def calibration_of(measured: dict[str, Any]) -> Calibration:
    """What `loadtests.capacity measure` wrote."""
    answering, refusing = measured["answering"], measured["refusing"]
    largest, cores = measured["largest_batch"], measured["costs"]["cores"]
    return Calibration([_spent(load) for load in answering], _spent(refusing), largest, cores)


def _spent(written: dict[str, Any]) -> Spent:
    return Spent(**(written | {"step": Step(**written["step"])}))


def _with_core(spent: Spent) -> float:
    """Seconds of the batches with a core: being without one falls on batches and requests alike."""
    with_core = spent.main_cpu_seconds / (spent.main_cpu_seconds + spent.main_delay_seconds)
    return with_core * spent.compute_seconds


def _fit(rows: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The line a + b * rows through the times, each weighed by its own size, neither below 0.

    Raises ValueError if a time is not positive.
    """
    if min(seconds) <= 0:
        raise ValueError(BUSY)
    terms = np.stack([np.ones_like(rows, float), np.array(rows, float)], axis=1) / np.array(seconds)[:, None]
    (a, b), *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    if a < 0 or b < 0:
        place = int(a < 0)  # the term that is left
        left = terms[:, place]
        a, b = np.eye(2)[place] * (left.sum() / (left @ left))
    return float(a), max(float(b), 1e-9)
