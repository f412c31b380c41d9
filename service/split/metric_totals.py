"""Merges the metrics of several processes: counters are summed and outlive their process."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import add

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Exemplar

from service.observability.histograms import NativeFamily, newer
from service.observability.native import added

_Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""

COUNTING = ("counter", "histogram")
OLDEST = ("process_start_time_seconds", "process_max_fds")
"""Gauges merged by minimum: the oldest start, the lowest limit."""
READY = "inkserve_ready"
"""Also merged by minimum: a service is ready if every process that exports this gauge is."""


@dataclass
class _Source:
    run: str
    families: list[Metric]
    alive: bool = True


class Totals:
    """The metrics of a service's processes, running and past."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._retired: list[Metric] = []

    def update(self, role: str, run: str, families: Iterable[Metric]) -> None:
        """Replace a process's metrics by its current ones.

        role: which process of the service. run: which of the successive processes in that role. A new run
        starts at zero, so the counts of the previous one are kept and added.
        """
        before = self._sources.get(role)
        if before is not None and before.run != run:
            self._retired = merge([*self._retired, *_counting(before.families)])
        self._sources[role] = _Source(run, list(families))

    def lose(self, role: str) -> None:
        """Forget the gauges of a process that has exited, and keep its counts."""
        if role in self._sources:
            self._sources[role].alive = False

    def collect(self) -> Iterator[Metric]:
        """Return the service's metrics; see `prometheus_client.registry.Collector`."""
        return iter(merge(self._families()))

    def select(self, names: Collection[str]) -> list[Metric]:
        """Return only the families with these names."""
        return merge(family for family in self._families() if family.name in names)

    def _families(self) -> Iterator[Metric]:
        families = (
            source.families if source.alive else _counting(source.families)
            for source in self._sources.values()
        )
        return chain(*families, self._retired)

    def registry(self) -> CollectorRegistry:
        """Return the service's current metrics, to be encoded."""
        return registry_of(list(self.collect()))


class _Fixed:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def registry_of(families: list[Metric]) -> CollectorRegistry:
    """Return a registry that holds only these."""
    registry = CollectorRegistry()
    registry.register(_Fixed(families))
    return registry


def merge(families: Iterable[Metric]) -> list[Metric]:
    """Return one family per name, with one sample per name and labels, and its newest exemplar."""
    merged: dict[str, Metric] = {}
    values: dict[str, dict[_Key, float]] = {}
    exemplars: dict[_Key, Exemplar] = {}
    for family in families:
        if family.name not in merged:
            merged[family.name] = _empty(family)
        if isinstance(family, NativeFamily):
            _add_native(merged[family.name], family)
        samples = values.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sample.labels.items())
            combine = _combiner(sample.name, family.type)
            samples[key] = combine(samples[key], sample.value) if key in samples else sample.value
            if sample.exemplar is not None:
                exemplars[key] = newer(exemplars.get(key), sample.exemplar)
    for name, family in merged.items():
        for (sample_name, labels), value in values[name].items():
            exemplar = exemplars.get((sample_name, labels))
            family.add_sample(sample_name, dict(labels), value, exemplar=exemplar)
    return list(merged.values())


def _empty(family: Metric) -> Metric:
    if isinstance(family, NativeFamily):
        return NativeFamily(family.name, family.documentation)
    return Metric(family.name, family.documentation, family.type)


def _add_native(total: Metric, family: NativeFamily) -> None:
    assert isinstance(total, NativeFamily)
    for key, native in family.native.items():
        total.native[key] = added(total.native.get(key, {}), native)


def _combiner(sample_name: str, kind: str) -> Callable[[float, float], float]:
    if sample_name in (*OLDEST, READY) or sample_name.endswith("_created"):
        return min
    if kind == "info" or sample_name.endswith("_info"):
        return max
    return add


def _counting(families: Iterable[Metric]) -> list[Metric]:
    return [family for family in families if family.type in COUNTING]
