"""Where metrics are declared: name, labels and buckets, not where the values come from.

`histograms` assembles the metrics of requests, `gpu` adds a GPU's.
"""

import platform
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from service.observability.busy import PartSeconds
from service.observability.histograms import DeferredHistogram, RequestMetrics
from service.observability.logs import dropped_lines

disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series per counter, never read

PREFIX = "inkserve"
SECONDS = (
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
)
LATENCY_OBJECTIVE_SECONDS = 0.5
"""A response that took no longer is good: the latency objective of helm/rules/inkserve.yaml."""
RELATIVE_SCORES = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

BatchReason = Literal["full", "idle", "delay"]
"""Why a batch ran when it did: it was full, the device was idle, or `max_batch_delay_seconds` had passed."""

Rejection = Literal[
    "queue_full",
    "deadline_unreachable",
    "buffers_full",
    "deadline",
    "not_ready",
    "shutting_down",
    "unavailable",
    "client_left",
]
"""Why a valid request was not served. The first three reasons mean too much work, which is answered 429."""

Closing = Literal["malformed", "head_timeout", "body_timeout", "send_timeout", "evicted", "refused"]
"""Why the service closed a connection before its client was done."""


class Registry(CollectorRegistry):
    """A registry that counts deferred observations before it is collected."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[Callable[[], None]] = []

    def before_collect(self, count: Callable[[], None]) -> None:
        """Call `count`, which counts deferred observations, before each collection."""
        self._before.append(count)

    def count_deferred(self) -> None:
        """Count the deferred observations now."""
        for count in self._before:
            count()

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        self.count_deferred()
        return super().collect()


class Metrics:
    """The service's metrics in one registry of their own.

    Label values come from closed sets: our routes, the loaded models, our reasons and status codes.
    """

    def __init__(self) -> None:
        self.registry = Registry()
        self.requests = RequestMetrics(PREFIX, SECONDS, LATENCY_OBJECTIVE_SECONDS)
        self.registry.register(self.requests)
        by_version = "model", "version"
        text = "From submission to the first batch."
        self.queue_seconds = self._deferred("queue_seconds", text, SECONDS, *by_version)
        self.request_rows = self._deferred("request_rows", "Rows of a request.", ROWS, *by_version)
        text = "A row's ood_score relative to its model's abstain_above: above 1 it abstains."
        self.ood_scores = self._deferred("relative_ood_score", text, RELATIVE_SCORES, *by_version)
        text = "Decoding one body, the wait for a decoder included."
        self.decode_seconds = self._deferred("decode_seconds", text, SECONDS, "format")
        text = "Encoding one result as the response's body."
        self.encode_seconds = self._deferred("encode_seconds", text, SECONDS, "format")
        self.busy_seconds = PartSeconds(f"{PREFIX}_busy_seconds", "Seconds in which a part was busy.")
        text = "Seconds for which a part would have been busy, had all rows run in full batches."
        self.work_seconds = PartSeconds(f"{PREFIX}_work_seconds", text)
        self.registry.register(self.busy_seconds)
        self.registry.register(self.work_seconds)
        self.compute_seconds = self._seconds("batch_compute", "One batch on the device.", *by_version)
        self.batch_rows = Histogram(
            f"{PREFIX}_batch_rows",
            "Rows in a batch, padding not counted.",
            by_version,
            registry=self.registry,
            buckets=ROWS,
        )
        self.batches = self._counter("batches", "Batches run.", *by_version, "reason")
        text = "Batches that failed, or in which a request did."
        self.batch_failures = self._counter("batch_failures", text, *by_version)
        self.rows = self._counter("rows", "Rows run.", *by_version)
        self.failed_rows = self._counter("failed_rows", "Rows of the requests that failed.", *by_version)
        text = "Requests that failed on the device."
        self.failed_requests = self._counter("failed_requests", text, *by_version)
        text = "Seconds of the batches with a request's rows, summed over requests, by how these ended."
        self.request_compute_seconds = self._counter("request_compute_seconds", text, *by_version, "result")
        text = "When the last batch ended, in seconds since 1970; 0 before the first."
        self.last_batch = self._gauge("last_batch_timestamp_seconds", text, *by_version)
        self.abstained = self._counter("abstained", "Rows whose ood_score is above the limit.", *by_version)
        self.padding_rows = self._counter(
            "padding_rows", "Padding rows run, on top of the real rows.", *by_version
        )
        self.rejected = self._counter("rejected_requests", "Requests not served.", "model", "reason")
        self.agreement = self._counter(
            "generator_agreement",
            "Generated images that a classifier read, by whether it read their label.",
            "model",
            "result",
        )
        self.coalesced = self._counter(
            "coalesced_requests", "Requests that got what another one in flight computed.", "model"
        )
        self.model_loads = self._counter(
            "model_loads", "Attempts to load a model version, by result.", "model", "result"
        )
        self.rows_waiting = self._gauge("rows_waiting", "Rows in a model's queue.", "model")
        self.requests_waiting = self._gauge("requests_waiting", "Requests in a model's queue.", "model")
        self.connections_closed = self._counter(
            "connections_closed", "Connections that the service closed early, by reason.", "reason"
        )
        self._requests_queued: Gauge | None = None
        self._of_rejected: dict[tuple[str, Rejection], Counter] = {}
        self.build = Info(f"{PREFIX}_build", "Versions of inkserve and Python.", registry=self.registry)

    def count_rejected(self, model: str, reason: Rejection) -> None:
        """Count a request that was not served. model: empty if none was found."""
        counter = self._of_rejected.get((model, reason))
        if counter is None:  # looking up labels costs more than counting
            counter = self._of_rejected[model, reason] = self.rejected.labels(model, reason)
        counter.inc()

    def count_agreement(self, model: str, agreeing: int, read: int) -> None:
        """Count generated images that a classifier read. agreeing: those that show their label."""
        self.agreement.labels(model, "agree").inc(agreeing)
        self.agreement.labels(model, "disagree").inc(read - agreeing)

    def count_coalesced(self, model: str, count: int = 1) -> None:
        """Count requests that got what another one in flight computed."""
        self.coalesced.labels(model).inc(count)

    def of_batches(self, model: str, version: int) -> "BatchMetrics":
        """Return the metrics of one model version's batches."""
        return BatchMetrics(self, model, str(version))

    def of_scores(self, model: str, version: int, limit: float) -> "ScoreMetrics":
        """Return the metrics of one model version's `ood_score`. limit: its `abstain_above`."""
        return ScoreMetrics(self, model, str(version), limit)

    def watch_model(
        self, model: str, rows_waiting: Callable[[], float], requests_waiting: Callable[[], float]
    ) -> None:
        """Read a model's queue at each collection, and export counters without an event yet as 0.

        A counter that first appears with its first event hides that event from `rate`.
        """
        self.rows_waiting.labels(model).set_function(rows_waiting)
        self.requests_waiting.labels(model).set_function(requests_waiting)
        for reason in get_args(Rejection):
            self.rejected.labels(model, reason)
        self.model_loads.labels(model, "failed")

    def watch_queues(self, queued: Callable[[], float], running: Callable[[], float]) -> None:
        """Add gauges of the requests of all models together, for readers of a single series."""
        self._requests_queued = self._gauge("requests_queued", "Requests in the queues of all models.")
        self._requests_queued.set_function(queued)
        self._gauge("requests_running", "Requests in the batches of all models.").set_function(running)

    def watch_load(self, load: Callable[[], float]) -> None:
        """Add the gauge that autoscalers read. In a service of several processes, only one may have it."""
        text = "Work of the bottleneck per second, plus ten times the fraction shed; at most 2, over 30 s."
        self._gauge("load", text).set_function(load)

    def watch_connections(
        self, open_connections: Callable[[], float], in_flight: Callable[[], float]
    ) -> None:
        """Add gauges of the open connections, and of those that have an inference request in flight.

        Exports the counters of those closed early as 0.
        """
        self._gauge("connections", "Open connections.").set_function(open_connections)
        text = "Requests to the inference routes, from their first byte to their response."
        self._gauge("requests_in_flight", text).set_function(in_flight)
        for reason in get_args(Closing):
            self.connections_closed.labels(reason)

    def count_closed(self, reason: Closing) -> None:
        """Count a connection that the service closed early."""
        self.connections_closed.labels(reason).inc()

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Add a gauge of whether new requests are accepted, read at each collection."""
        self._gauge("ready", "1 if new requests are accepted, else 0.").set_function(ready)

    def watch_process(self) -> None:
        """Add metrics of the process: versions, memory, CPU time, garbage collections."""
        self.build.info({"version": package_version(), "python": platform.python_version()})
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._watch_log()

    def inference_families(self) -> Iterable[Metric]:
        """Return the families that `service.observability.statistics` reads."""
        self.registry.count_deferred()
        sources = (
            self.queue_seconds,
            self.request_compute_seconds,
            self.batches,
            self.rows,
            self.failed_rows,
            self.failed_requests,
            self.last_batch,
        )
        return [family for source in sources for family in source.collect()]

    def load_families(self) -> Iterable[Metric]:
        """Return the families that `service.observability.load` reads, without collecting all others."""
        self.registry.count_deferred()
        queued = [] if self._requests_queued is None else self._requests_queued.collect()
        return [*self.work_seconds.collect(), self.requests.counted(), *queued]

    def _watch_log(self) -> None:
        dropped = self._counter("log_lines_dropped", "Log lines dropped because stderr did not take them.")
        counted = 0

        def count() -> None:
            nonlocal counted
            now = dropped_lines()
            dropped.inc(max(0, now - counted))
            counted = now

        self.registry.before_collect(count)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _deferred(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> DeferredHistogram:
        histogram = DeferredHistogram(f"{PREFIX}_{name}", text, bounds, *labels)
        self.registry.register(histogram)
        return histogram

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}_seconds", text, labels, registry=self.registry, buckets=SECONDS)


class BatchMetrics:
    """One model version's batch metrics, with their labels looked up once."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        of = model, version
        self._reasons = {reason: metrics.batches.labels(*of, reason) for reason in get_args(BatchReason)}
        self._batch_rows = metrics.batch_rows.labels(*of)
        self._rows = metrics.rows.labels(*of)
        self._padding = metrics.padding_rows.labels(*of)
        self._compute = metrics.compute_seconds.labels(*of)
        self._queue = metrics.queue_seconds.of(*of)
        self._request_rows = metrics.request_rows.of(*of)
        self._failures = metrics.batch_failures.labels(*of)
        self._failed_rows = metrics.failed_rows.labels(*of)
        self._failed_requests = metrics.failed_requests.labels(*of)
        self._answered_compute = metrics.request_compute_seconds.labels(*of, "ok")
        self._failed_compute = metrics.request_compute_seconds.labels(*of, "failed")
        self._last_batch = metrics.last_batch.labels(*of)

    def observe(
        self,
        *,
        reason: BatchReason,
        rows: int,
        padded_rows: int,
        compute_seconds: float,
        queue_seconds: Sequence[float],
        request_rows: Sequence[int],
        failed: bool,
    ) -> None:
        """Count one batch.

        padded_rows: the batch size that it was padded to.
        queue_seconds, request_rows: one figure per request that started in this batch.
        """
        self._reasons[reason].inc()
        self._batch_rows.observe(rows)
        self._rows.inc(rows)
        self._padding.inc(padded_rows - rows)
        self._compute.observe(compute_seconds)
        self._queue.extend(queue_seconds)
        self._request_rows.extend(request_rows)
        if failed:
            self._failures.inc()

    def observe_requests(
        self,
        *,
        answered_seconds: float,
        failed_seconds: float,
        failed_requests: int,
        failed_rows: int,
        last_ended: float,
    ) -> None:
        """Count what several batches were to their requests.

        answered_seconds: each batch's, times the requests with rows in it that did not fail.
        failed_seconds: times those that did. last_ended: when the last of the batches ended, in seconds since
            1970.
        """
        self._answered_compute.inc(answered_seconds)
        self._failed_compute.inc(failed_seconds)
        self._failed_requests.inc(failed_requests)
        self._failed_rows.inc(failed_rows)
        self._last_batch.set(last_ended)


class ScoreMetrics:
    """One model version's metrics of its `ood_score`, with their labels looked up once."""

    def __init__(self, metrics: Metrics, model: str, version: str, limit: float) -> None:
        self._limit = limit
        self._abstained = metrics.abstained.labels(model, version)
        self._relative = metrics.ood_scores.of(model, version)

    def observe(self, scores: NDArray[np.float32]) -> None:
        """Count the scores of many rows, (rows,)."""
        self._abstained.inc(int((scores > self._limit).sum()))
        self._relative.count(scores / self._limit)


@cache
def package_version() -> str:
    """Return inkserve's own version."""
    try:
        return version("inkserve")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
