"""A pod's costs, derived from a running pod under loads of one-image requests.

The model describes such loads. Large batches of one caller cost less than the same rows of many callers (35
us per row instead of 41), because HTTP between the batches evicts data from the CPU's caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loadtests.measured_pod import MeasuredPod, Spent, Step
from loadtests.progress import doing, say
from loadtests.simulation.costs import PodCosts
from loadtests.simulation.service_rules import ON_LOOP_ROWS, default_threads

CALLERS = (1, 2, 4, 16, 64, 256)
"""Closed-loop concurrency levels: batches hold from one row to half or all of the callers."""

REFUSED_CALLERS = 1024
"""More than may be queued: the others are rejected and ask again at once. A service that may queue one
request does little but reject, for 11 us each; next to batches of 113 rows a rejection took 18 us, of 66 rows
24 us."""

FEW = 0.1
"""Rejections, as a fraction of the responses, below which their cost cannot be told from the load."""

LARGE_ROWS = 256
"""Images in requests that show whether a service's batches are smaller than the model assumes."""


BUSY = "the batches took longer than the thread that ran them: is the machine busy?"


@dataclass(frozen=True)
class Calibration:
    """The loads that give the costs. answering: under each of CALLERS; refusing: under REFUSED_CALLERS.

    largest_batch: rows of the batches of LARGE_ROWS requests. cores: of the pod.
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
        """The highest rate of responses in any load, per second."""
        return max(spent.step.answered_rate for spent in self.answering)

    def speed_change(self, after: Spent) -> float:
        """The relative change of the rate of the most CALLERS since, because the machine's speed drifts."""
        return after.step.answered_rate / self.answering[-1].step.answered_rate - 1

    def speed(self, spent: Spent, costs: PodCosts) -> float:
        """The machine's speed under a load, relative to the speed at which the costs were measured.

        It is the CPU time that the batches and requests should have taken, divided by what they took;
        latencies do not enter.
        """
        expected = (
            spent.batches * (costs.batch_seconds + costs.turn_seconds)
            + spent.padded_rows * costs.row_seconds
            + spent.rows * costs.request_seconds
            + spent.refused * costs.refuse_seconds
        )
        return expected / (self._device_seconds(spent) + self._loop_seconds(spent))

    def loop_share(self, spent: Spent) -> float:
        """The fraction of the batches that ran inline, on the main thread.

        If onnxruntime has no threads of its own, the CPU time of other threads was that of the other batches.
        Otherwise it is what the service's rule says of batches of this size.
        """
        if self._has_threads:
            return float(spent.rows <= self._device_costs().on_loop_rows * spent.batches)
        others = (spent.cpu_seconds - spent.main_cpu_seconds) / _with_core(spent)
        return min(1.0, max(0.0, 1.0 - others))

    def costs(self, start_seconds: float) -> PodCosts:
        """The model's costs. Raises ValueError if the loop had no time left next to its batches.

        The event loop's costs are its thread's CPU time minus the inline batches. Those count in wall time,
        because onnxruntime's other threads work at the same time, minus the time without a core. If too few
        requests were rejected, a rejection counts as expensive as a response.
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
        """The line through the batches; all other costs are 0."""
        batch_seconds, row_seconds = _fit(
            [load.padded_rows / load.batches for load in self.answering],
            [self._device_seconds(load) / load.batches for load in self.answering],
        )
        costs = PodCosts(batch_seconds, row_seconds, 0.0, 0.0, 0.0, 0.0, 0.0, cores=self.cores)
        if self.largest_batch < ON_LOOP_ROWS:  # larger batches may have been cut to fit the loop
            return replace(costs, max_batch_size=self.largest_batch)
        return costs

    def _device_seconds(self, spent: Spent) -> float:
        """Seconds of all batches, without the time in which the loop used the core that they share."""
        if self._has_threads:
            return spent.compute_seconds
        return max(_with_core(spent), spent.cpu_seconds - spent.main_cpu_seconds)

    def _loop_seconds(self, spent: Spent) -> float:
        return spent.main_cpu_seconds - self.loop_share(spent) * _with_core(spent)


def calibrate(pod: MeasuredPod, cores: int) -> Calibration:
    """Load a running pod. Raises ValueError if a load gets no response, see `MeasuredPod.closed`."""
    answering = [_spend(pod, callers) for callers in CALLERS]
    refusing = _spend(pod, REFUSED_CALLERS)
    with doing(f"requests of {LARGE_ROWS} images"):
        return Calibration(answering, refusing, pod.largest_batch(LARGE_ROWS), cores)


def _spend(pod: MeasuredPod, callers: int) -> Spent:
    with doing(f"{callers} callers"):
        spent = pod.spend(callers)
    say(f"{callers} callers: {spent.step.answered_rate:,.0f} requests/s answered")
    return spent


def calibration_of(measured: dict[str, Any]) -> Calibration:
    """Read the loads that `loadtests.capacity measure` wrote."""
    answering, refusing = measured["answering"], measured["refusing"]
    largest, cores = measured["largest_batch"], measured["costs"]["cores"]
    return Calibration([_spent(load) for load in answering], _spent(refusing), largest, cores)


def _spent(written: dict[str, Any]) -> Spent:
    return Spent(**(written | {"step": Step(**written["step"])}))


def _with_core(spent: Spent) -> float:
    """Seconds of the batches with a core; batches and requests lack one for the same fraction of time."""
    with_core = spent.main_cpu_seconds / (spent.main_cpu_seconds + spent.main_delay_seconds)
    return with_core * spent.compute_seconds


def _fit(rows: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit the line a + b * rows to the times, each weighted by its own size, with a, b >= 0.

    Raises ValueError if a time is not positive.
    """
    if min(seconds) <= 0:
        raise ValueError(BUSY)
    terms = np.stack([np.ones_like(rows, float), np.array(rows, float)], axis=1) / np.array(seconds)[:, None]
    (a, b), *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    if a < 0 or b < 0:
        place = int(a < 0)  # the term that remains
        left = terms[:, place]
        a, b = np.eye(2)[place] * (left.sum() / (left @ left))
    return float(a), max(float(b), 1e-9)
