"""Metrics in Prometheus' protobuf format, the only one in which it reads native histograms.

Follows `io/prometheus/client/metrics.proto` of prometheus/client_model; prometheus_client writes text only.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.samples import Exemplar, Sample

from service.observability.histograms import NativeFamily, labels_key
from service.observability.native import SCHEMA, ZERO_THRESHOLD, ZEROS, Native, spans_of

MEDIA_TYPE = "application/vnd.google.protobuf"
CONTENT_TYPE = f"{MEDIA_TYPE}; proto=io.prometheus.client.MetricFamily; encoding=delimited"

_COUNTER, _GAUGE, _UNTYPED, _HISTOGRAM = 0, 1, 3, 4
_TYPES = {"counter": _COUNTER, "gauge": _GAUGE, "info": _GAUGE}
_VALUE_FIELDS = {_GAUGE: 2, _COUNTER: 3, _UNTYPED: 5}
"""The field of a Metric that holds a value of each type."""


class Collector(Protocol):
    """A registry of prometheus_client."""

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        ...


def is_wanted(accept: str) -> bool:
    """Whether an Accept header asks for this format at least as much as for any other."""
    qualities = {True: 0.0, False: 0.0}
    for media_range in accept.split(","):
        name, *parameters = [part.strip() for part in media_range.lower().split(";")]
        given = dict(part.partition("=")[::2] for part in parameters)
        ours = name == MEDIA_TYPE
        if ours and given.get("proto") != "io.prometheus.client.metricfamily":
            continue
        if ours and given.get("encoding") != "delimited":
            continue
        try:
            quality = float(given.get("q", "1"))
        except ValueError:
            quality = 0.0
        qualities[ours] = max(qualities[ours], quality)
    return qualities[True] > 0 and qualities[True] >= qualities[False]


def encode(registry: Collector) -> bytes:
    """Return all families, each preceded by its length."""
    pieces = []
    for family in registry.collect():
        for message in _families(family):
            pieces += [_varint(len(message)), message]
    return b"".join(pieces)


def _families(family: Metric) -> Iterable[bytes]:
    """Yield a family's messages: one for each name of samples, as the format has no suffixes."""
    if family.type == "histogram":
        yield _family(family.name, family, _HISTOGRAM, _histograms(family))
        return
    kind = _TYPES.get(family.type, _UNTYPED)
    by_name: dict[str, list[Sample]] = {}
    for sample in family.samples:
        by_name.setdefault(sample.name, []).append(sample)
    for name, samples in by_name.items():
        yield _family(name, family, kind, [_valued(sample, kind) for sample in samples])


def _family(name: str, family: Metric, kind: int, metrics: Iterable[bytes]) -> bytes:
    head = _text(1, name) + _text(2, family.documentation) + _number(3, kind)
    return head + b"".join(_bytes(4, metric) for metric in metrics)


def _valued(sample: Sample, kind: int) -> bytes:
    value = _double(1, sample.value)
    if kind == _COUNTER and sample.exemplar is not None:
        value += _bytes(2, _exemplar(sample.exemplar))
    return _labels(1, sample.labels) + _bytes(_VALUE_FIELDS[kind], value)


def _histograms(family: Metric) -> Iterable[bytes]:
    """Yield a Metric for each series of a histogram: its classic buckets, and native ones if it has any."""
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        series.setdefault(labels_key(labels), []).append(sample)
    natives = family.native if isinstance(family, NativeFamily) else {}
    for key, samples in series.items():
        yield _labels(1, dict(key)) + _bytes(7, _histogram(samples, natives.get(key)))


def _histogram(samples: Sequence[Sample], native: Native | None) -> bytes:
    buckets, total, count = b"", 0.0, 0
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            bucket = _number(1, int(sample.value)) + _double(2, bound)
            if sample.exemplar is not None:
                bucket += _bytes(3, _exemplar(sample.exemplar))
            buckets += _bytes(3, bucket)
            count = max(count, int(sample.value))
        elif sample.name.endswith("_sum"):
            total = sample.value
    message = _number(1, count) + _double(2, total) + buckets
    if native is None:
        return message
    spans, deltas = spans_of(native)
    message += _number(5, _zigzag(SCHEMA)) + _double(6, ZERO_THRESHOLD) + _number(7, native.get(ZEROS, 0))
    for offset, length in spans or ((0, 0),):  # an empty span says that the histogram is native
        message += _bytes(12, _number(1, _zigzag(offset)) + _number(2, length))
    return message + _bytes(13, b"".join(_varint(_zigzag(delta)) for delta in deltas))


def _exemplar(exemplar: Exemplar) -> bytes:
    seconds = float(exemplar.timestamp or 0)
    timestamp = _number(1, int(seconds)) + _number(2, int(seconds % 1 * 1e9))
    return _labels(1, exemplar.labels) + _double(2, exemplar.value) + _bytes(3, timestamp)


def _labels(field: int, labels: Mapping[str, str]) -> bytes:
    return b"".join(_bytes(field, _text(1, name) + _text(2, value)) for name, value in labels.items())


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _double(field: int, number: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", number)


def _zigzag(number: int) -> int:
    """Return a signed number as protobuf's sint fields hold it."""
    return number << 1 if number >= 0 else (-number << 1) - 1


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
