"""Histograms of which each observation is one list append; bucketing is deferred.

prometheus_client's Counter and Histogram take 4 of the 25 us of a request.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from service.observability.native import Native, added, classic_counts, grid_of, native_counts

NOT_MODIFIED = 304
"""Answered without computing: the client had the response already."""

FOLD_AT = 4096
"""Observations kept before they are put into their buckets, which takes 0.1 ms."""


class Tally:
    """Values, and how many of them fall into which bucket. For one thread.

    bounds: the classic buckets' upper bounds, ascending; a last bucket without a bound follows.
    exemplars: the last observation noted for each bucket, by the bucket's index.
    pending: observations that are not in their buckets yet. Code that appends here directly must call `fold`
        once it holds FOLD_AT of them.
    """

    __slots__ = ("_bounds", "_counts", "_folded", "_grid", "_sum", "exemplars", "pending")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._grid = grid_of(tuple(bounds))
        self._counts = np.zeros(len(self._grid.bounds) + 1, np.int64)
        self._folded = 0
        self._sum = 0.0
        self.pending: list[float] = []
        self.exemplars: dict[int, Exemplar] = {}

    def add(self, value: float) -> None:
        """Count one observation."""
        self.pending.append(value)
        if len(self.pending) >= FOLD_AT:
            self.fold()

    def extend(self, values: Sequence[float]) -> None:
        """Count several observations."""
        self.pending.extend(values)
        if len(self.pending) >= FOLD_AT:
            self.fold()

    def count(self, values: NDArray[Any]) -> None:
        """Count many observations at once: each at a tenth of what `extend` takes."""
        buckets = np.searchsorted(self._grid.bounds, values)  # a bound belongs to its own bucket
        self._counts += np.bincount(buckets, minlength=len(self._counts))
        self._folded += len(values)
        self._sum += float(values.sum(dtype=np.float64))

    def note_exemplar(self, value: float, labels: Mapping[str, str]) -> None:
        """Note an observation that was counted, and the trace that it belongs to."""
        bucket = int(np.searchsorted(self._bounds, value))
        self.exemplars[bucket] = Exemplar(dict(labels), value, time.time())

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Count the seconds of a block, whether it raises or not."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    def total(self) -> int:
        """Return the number of observations."""
        return self._folded + len(self.pending)

    def counts(self) -> NDArray[np.int64]:
        """Return the count of each classic bucket, not cumulative."""
        self.fold()
        return classic_counts(self._grid, self._counts)

    def native(self) -> Native:
        """Return the counts of the exponential buckets."""
        self.fold()
        return native_counts(self._grid, self._counts)

    def sum(self) -> float:
        """Return the sum of all observations."""
        self.fold()
        return self._sum

    def fold(self) -> None:
        """Put the pending observations into their buckets."""
        if self.pending:
            self.count(np.array(self.pending))
            self.pending.clear()


def labels_key(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return labels as the key of a series."""
    return tuple(labels.items())


class NativeFamily(Metric):
    """A histogram with exponential buckets too. native: their counts for each series, by `labels_key`."""

    def __init__(self, name: str, documentation: str) -> None:
        super().__init__(name, documentation, "histogram")
        self.native: dict[tuple[tuple[str, str], ...], Native] = {}


class _Family(HistogramMetricFamily, NativeFamily):
    """A native family that is built from buckets."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        HistogramMetricFamily.__init__(self, name, documentation, labels=labels)
        self.native = {}
        self.label_names = labels


def add_histogram(
    family: _Family, labels: Sequence[str], bounds: Sequence[float], tallies: Sequence[Tally]
) -> None:
    """Add one series: the sum of several tallies with these bounds, and each bucket's newest exemplar."""
    key = labels_key(dict(zip(family.label_names, labels, strict=True)))
    family.native[key] = reduce(added, (tally.native() for tally in tallies))
    counts = np.sum([tally.counts() for tally in tallies], axis=0).cumsum().tolist()
    names = [floatToGoString(bound) for bound in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]
    newest: dict[int, Exemplar] = {}
    for tally in tallies:
        for bucket, exemplar in tally.exemplars.items():
            newest[bucket] = newer(newest.get(bucket), exemplar)
    buckets = [
        (name, float(count), newest[bucket]) if bucket in newest else (name, float(count))
        for bucket, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    family.add_metric(labels, buckets, sum_value=sum(tally.sum() for tally in tallies))


def newer(one: Exemplar | None, other: Exemplar) -> Exemplar:
    """Return the exemplar with the later time. Both have times in seconds, if there are two."""
    return other if one is None or float(other.timestamp or 0) >= float(one.timestamp or 0) else one


class DeferredHistogram:
    """A histogram with labels; see `prometheus_client.registry.Collector`."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labels = labels
        self._tallies: dict[tuple[str, ...], Tally] = {}

    def of(self, *values: str) -> Tally:
        """Return the observations with these values of the labels."""
        assert len(values) == len(self._labels)
        tally = self._tallies.get(values)
        if tally is None:  # making one takes 2 us
            tally = self._tallies[values] = Tally(self._bounds)
        return tally

    def collect(self) -> Iterator[Metric]:
        """Return the histogram now."""
        family = _Family(self._name, self._text, self._labels)
        for values, tally in self._tallies.items():
            add_histogram(family, values, self._bounds, [tally])
        yield family


class RequestMetrics:
    """Requests by route, model and status, and their seconds; see `prometheus_client.registry.Collector`.

    prefix: of the metrics' names.
    objective: one of the bounds; a response with 2xx or 304 that took no longer is good.
    """

    def __init__(self, prefix: str, bounds: Sequence[float], objective: float) -> None:
        self._prefix = prefix
        self._bounds = bounds
        self._objective = objective
        self._tallies: dict[tuple[str, str, int], Tally] = {}

    def of(self, route: str, model: str, status: int) -> Tally:
        """Return the seconds of the requests with these labels. model: empty if none was found."""
        tally = self._tallies.get((route, model, status))
        if tally is None:
            tally = self._tallies[route, model, status] = Tally(self._bounds)
        return tally

    def counted(self) -> Metric:
        """Return only the counter of requests: no observation is put into its bucket for it."""
        requests = CounterMetricFamily(
            f"{self._prefix}_requests", "Requests answered.", labels=["route", "model", "status"]
        )
        for (route, model, status), tally in self._tallies.items():
            requests.add_metric([route, model, str(status)], float(tally.total()))
        return requests

    def collect(self) -> Iterator[Metric]:
        """Return the three metrics now."""
        requests = self.counted()
        good = CounterMetricFamily(
            f"{self._prefix}_good_requests",
            f"Requests answered with 2xx or 304 within {self._objective} s.",
            labels=["route", "model"],
        )
        text = "From a request's arrival to its response."
        seconds = _Family(f"{self._prefix}_request_seconds", text, ["route"])
        in_time: dict[tuple[str, str], int] = {}
        by_route: dict[str, list[Tally]] = {}
        good_buckets = list(self._bounds).index(self._objective) + 1
        for (route, model, status), tally in self._tallies.items():
            counts = tally.counts()
            by_route.setdefault(route, []).append(tally)
            if model and (200 <= status < 300 or status == NOT_MODIFIED):
                so_far = in_time.get((route, model), 0)
                in_time[route, model] = so_far + int(counts[:good_buckets].sum())
        for labels, count in in_time.items():
            good.add_metric(labels, float(count))
        for route, tallies in by_route.items():
            add_histogram(seconds, [route], self._bounds, tallies)
        yield from (requests, good, seconds)
