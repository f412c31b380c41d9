"""How loaded the service is, over a window: the number that autoscalers and load balancers act on.

The load is the work of the bottleneck, plus what was shed. The time that it was busy will not do: an idle
device starts at once, so it is busy with small batches nearly all the time from half of its capacity on. Nor
will the queue: it is empty below capacity, and stays short where requests are shed for their deadlines.

Reads counters from metric families, so it is the same for one process and for the sum of several.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import Metric

SAMPLE_SECONDS = 1.0
GAUGE_SECONDS = 30.0
"""The window of `inkserve_load`: an autoscaler that reads it every 15 or 30 s misses nothing."""

REPORT_SECONDS = 5.0
"""The window of a load report: balancers act within seconds. In the split form, a worker's counters are up to
half a second older, a tenth of this."""

ROUTES = (
    "/classify",
    "/generate",
    "/search",
    "/encode",
    "/decode",
    "/reconstruct",
    "/interpolate",
    "/explain",
    "/v2/models/{name}/infer",
    "/inference.GRPCInferenceService/ModelInfer",
)
"""Requests to any other route are no load: a probe must not make a shed request count for less."""

SHED_WEIGHT = 10.0
"""Each percent that is shed counts for ten percent of a pod: a pod whose deadlines allow only small batches
is full before it has done a full pod's work."""

MOST = 2.0
"""The highest load: beyond it, what was shed tells less of the need than of callers that try again."""

WORK = "inkserve_work_seconds"
REQUESTS = "inkserve_requests"
QUEUED = "inkserve_requests_queued"
FAMILIES = (WORK, REQUESTS, QUEUED)
"""The families that `read_counts` needs."""


class Counts(NamedTuple):
    """What had happened by a time.

    work_seconds: by part; see `service.batching.work`. ended: requests that have their
    response. shed: those of them with 429. failed: those with 5xx. queued: requests in the queue.
    """

    at: float
    work_seconds: Mapping[str, float]
    ended: float
    shed: float
    failed: float
    queued: float


class Load(NamedTuple):
    """What a service did over a window.

    work: of the part that did most, per second. shed: the fraction of the ended requests that were shed.
    queued: requests in the queue, on average, as a fraction of the most that may be.
    """

    work: float = 0.0
    shed: float = 0.0
    queued: float = 0.0
    requests_per_second: float = 0.0
    errors_per_second: float = 0.0

    @property
    def load(self) -> float:
        """The work plus what was shed: 0 when idle, about 1 at capacity, 2 if a tenth or more is shed."""
        return min(MOST, self.work + SHED_WEIGHT * self.shed)

    @property
    def utilization(self) -> float:
        """The load, and what is queued by the same weight as what is shed.

        For balancers: it passes 1 once requests queue up, before any is shed.
        """
        return self.load + min(1.0, SHED_WEIGHT * self.queued)


IDLE = Load()


def read_counts(at: float, families: Iterable[Metric]) -> Counts:
    """Return the counts in these metric families. at: seconds, on any clock that does not go back."""
    work: dict[str, float] = {}
    ended = shed = failed = queued = 0.0
    for family in families:
        if family.name == WORK:
            work = {sample.labels["part"]: sample.value for sample in family.samples}
        elif family.name == QUEUED:
            queued = sum(sample.value for sample in family.samples)
        elif family.name == REQUESTS:
            for sample in family.samples:
                if sample.labels["route"] in ROUTES:
                    ended += sample.value
                    shed += sample.value * (sample.labels["status"] == "429")
                    failed += sample.value * sample.labels["status"].startswith("5")
    return Counts(at, work, ended, shed, failed, queued)


class LoadMeter:
    """The load over the last seconds, from samples of the counts.

    max_queued: the most requests that may be queued.
    """

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._samples: deque[Counts] = deque()

    def note(self, counts: Counts) -> None:
        """Add a sample, no earlier than the last one, and forget those that no window reaches."""
        self._samples.append(counts)
        while len(self._samples) > 2 and self._samples[1].at <= counts.at - GAUGE_SECONDS:
            self._samples.popleft()

    def over(self, seconds: float) -> Load:
        """Return the load over the last seconds, or over all samples if there are fewer."""
        if len(self._samples) < 2:
            return IDLE
        last = self._samples[-1]
        window = [each for each in self._samples if each.at > last.at - seconds]
        before = self._samples[max(0, len(self._samples) - len(window) - 1)]
        elapsed = last.at - before.at
        if elapsed <= 0:
            return IDLE
        ended, shed = last.ended - before.ended, last.shed - before.shed
        # A process that started within the window has no count at its beginning. Its first one serves
        # instead: what it did before that was loading.
        earliest: dict[str, float] = {}
        for each in (before, *window):
            earliest = {**each.work_seconds, **earliest}
            if earliest.keys() >= last.work_seconds.keys():
                break
        shares = [(value - earliest[part]) / elapsed for part, value in last.work_seconds.items()]
        return Load(
            max(0.0, *shares) if shares else 0.0,
            shed / ended if ended > 0 else 0.0,
            sum(each.queued for each in window) / len(window) / self._max_queued,
            ended / elapsed,
            (shed + last.failed - before.failed) / elapsed,
        )


async def keep_noting(
    meter: LoadMeter, collect: Callable[[], Iterable[Metric]], *reports: Callable[[Load], None]
) -> None:
    """Sample the metric families for ever, and report the load after each sample."""
    while True:
        meter.note(read_counts(time.monotonic(), collect()))
        load = meter.over(REPORT_SECONDS)
        for report in reports:
            report(load)
        await asyncio.sleep(SAMPLE_SECONDS)
