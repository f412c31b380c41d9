"""What each model version has computed since the service started, from the counters of its metrics.

Reads metric families, so it is the same for one process and for the sum of several. Knows nothing of
protocols.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric

from service.observability.metrics import Metrics

Gather = Callable[[], Awaitable[CollectorRegistry]]
"""Collects the metrics of all processes of a service."""


@dataclass
class Statistics:
    """Sums over a model version's batches. Times are in seconds.

    requests: that began to run. failed_requests: those of them that failed on the device.
    queue_seconds: from submission to the first batch, summed over the requests that began to run.
    compute_seconds: of the batches with a request's rows, summed over the requests that did not fail.
    failed_compute_seconds: summed over those that did.
    rows: run, without padding. failed_rows: those of the requests that failed.
    batches: run, whether they failed or not.
    last_batch: when the last one ended, in seconds since 1970; 0 before the first.
    """

    requests: float = 0.0
    failed_requests: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    failed_compute_seconds: float = 0.0
    rows: float = 0.0
    failed_rows: float = 0.0
    batches: float = 0.0
    last_batch: float = 0.0


_FIELDS = {
    ("inkserve_queue_seconds_count", ""): "requests",
    ("inkserve_failed_requests_total", ""): "failed_requests",
    ("inkserve_queue_seconds_sum", ""): "queue_seconds",
    ("inkserve_request_compute_seconds_total", "ok"): "compute_seconds",
    ("inkserve_request_compute_seconds_total", "failed"): "failed_compute_seconds",
    ("inkserve_rows_total", ""): "rows",
    ("inkserve_failed_rows_total", ""): "failed_rows",
    ("inkserve_batches_total", ""): "batches",
    ("inkserve_last_batch_timestamp_seconds", ""): "last_batch",
}
"""What each sample is added to, by its name and its label `result`."""


def read_statistics(families: Iterable[Metric]) -> Mapping[tuple[str, int], Statistics]:
    """Return the statistics in these metric families, by model and version."""
    found: dict[tuple[str, int], Statistics] = defaultdict(Statistics)
    for family in families:
        for sample in family.samples:
            field = _FIELDS.get((sample.name, sample.labels.get("result", "")))
            if field is not None:
                one = found[sample.labels["model"], int(sample.labels["version"])]
                setattr(one, field, getattr(one, field) + sample.value)
    return found


async def collect_statistics(metrics: Metrics, gather: Gather | None) -> Mapping[tuple[str, int], Statistics]:
    """Return the statistics of the whole service.

    metrics: this process's. gather: None if it is the only one.
    """
    if gather is None:
        return read_statistics(metrics.inference_families())
    return read_statistics((await gather()).collect())
