"""Native histograms: the buckets against their definition, the bytes against protobuf's own reader."""

import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from service.observability.histograms import Tally
from service.observability.metrics import SECONDS, Metrics
from service.observability.native import ZERO_THRESHOLD, ZEROS, Spans, added, spans_of
from service.observability.protobuf_exposition import CONTENT_TYPE, encode, is_wanted
from service.split import messages
from service.split.frames import Frame
from service.split.metric_totals import merge, registry_of

PROTO = {
    "LabelPair": [("name", 1, "string"), ("value", 2, "string")],
    "Gauge": [("value", 1, "double")],
    "Counter": [("value", 1, "double"), ("exemplar", 2, "Exemplar")],
    "Untyped": [("value", 1, "double")],
    "Timestamp": [("seconds", 1, "int64"), ("nanos", 2, "int32")],
    "Exemplar": [("label", 1, "LabelPair*"), ("value", 2, "double"), ("timestamp", 3, "Timestamp")],
    "Bucket": [("cumulative_count", 1, "uint64"), ("upper_bound", 2, "double"), ("exemplar", 3, "Exemplar")],
    "BucketSpan": [("offset", 1, "sint32"), ("length", 2, "uint32")],
    "Histogram": [
        *(("sample_count", 1, "uint64"), ("sample_sum", 2, "double"), ("bucket", 3, "Bucket*")),
        *(("schema", 5, "sint32"), ("zero_threshold", 6, "double"), ("zero_count", 7, "uint64")),
        *(("positive_span", 12, "BucketSpan*"), ("positive_delta", 13, "sint64*")),
    ],
    "Metric": [
        *(("label", 1, "LabelPair*"), ("gauge", 2, "Gauge"), ("counter", 3, "Counter")),
        *(("untyped", 5, "Untyped"), ("histogram", 7, "Histogram")),
    ],
    "MetricFamily": [
        *(("name", 1, "string"), ("help", 2, "string"), ("type", 3, "int32"), ("metric", 4, "Metric*")),
    ],
}
"""The parts of io/prometheus/client/metrics.proto that are written; `*`: repeated."""


def family_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package="client", syntax="proto3")
    for name, fields in PROTO.items():
        message = file.message_type.add(name=name)
        for label, number, kind in fields:
            repeated = kind.endswith("*")
            plain = kind.removesuffix("*")
            added_field = message.field.add(name=label, number=number)
            added_field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if plain in PROTO:
                added_field.type, added_field.type_name = field.TYPE_MESSAGE, f".client.{plain}"
            else:
                added_field.type = getattr(field, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("client.MetricFamily"))


FAMILY = family_class()


def decoded(content: bytes) -> dict[str, Any]:
    """Families by their names."""
    families, position = {}, 0
    while position < len(content):
        size, shift = 0, 0
        while content[position] & 0x80:
            size |= (content[position] & 0x7F) << shift
            position, shift = position + 1, shift + 7
        size |= content[position] << shift
        position += 1
        family = FAMILY.FromString(content[position : position + size])
        families[family.name] = family
        position += size
    return families


def expanded(histogram: Any) -> dict[int, int]:
    """The buckets of a decoded native histogram, as Prometheus expands them."""
    buckets, index, count = {}, 0, 0
    deltas = iter(histogram.positive_delta)
    for number, span in enumerate(histogram.positive_span):
        index = span.offset if number == 0 else index + span.offset
        for _ in range(span.length):
            count += next(deltas)
            buckets[index] = count
            index += 1
    assert next(deltas, None) is None
    return buckets


values = st.floats(0, 2**13, allow_subnormal=False) | st.sampled_from([*SECONDS, 2.0**-20, 2.0**-3, 0.0])


@given(st.lists(values, max_size=50))
def test_each_value_is_in_the_bucket_of_both_kinds_that_holds_it(observed: list[float]) -> None:
    tally = Tally(SECONDS)
    tally.extend(observed)
    classic = np.searchsorted(SECONDS, observed)
    assert tally.counts().tolist() == np.bincount(classic.astype(int), minlength=len(SECONDS) + 1).tolist()
    native = tally.native()
    assert sum(native.values()) == len(observed)
    for value in observed:
        if value <= ZERO_THRESHOLD:
            assert native[ZEROS] > 0
        else:
            near = math.ceil(8 * math.log2(value))
            (index,) = [i for i in (near - 1, near, near + 1) if 2 ** ((i - 1) / 8) < value <= 2 ** (i / 8)]
            assert native[index] > 0


@given(st.dictionaries(st.integers(-100, 100), st.integers(1, 9)))
def test_spans_hold_the_buckets(native: dict[int, int]) -> None:
    spans, deltas = spans_of(native)
    assert sum(length for _, length in spans) == len(deltas) == len(native)
    assert all(offset > 0 for offset, _ in spans[1:])
    index, count, found, rest = 0, 0, {}, iter(deltas)
    for number, (offset, length) in enumerate(spans):
        index = offset if number == 0 else index + offset
        for _ in range(length):
            count += next(rest)
            found[index] = count
            index += 1
    assert found == native


def test_zeros_are_no_span() -> None:
    assert spans_of({ZEROS: 3}) == Spans([], [])
    assert added({1: 2}, {1: 3, 5: 1}) == {1: 5, 5: 1}


def counted() -> Metrics:
    metrics = Metrics()
    seconds = metrics.requests.of("/classify", "cnn", 200)
    seconds.extend([0.0, 0.003, 0.0031, 0.25, 0.25, 7.5])
    seconds.note_exemplar(0.25, {"trace_id": "ab", "span_id": "cd"})
    metrics.requests.of("/generate", "gan", 200).add(1.0)
    metrics.count_rejected("cnn", "deadline")
    metrics.watch_ready(lambda: True)
    metrics.watch_process()
    return metrics


def test_protobuf_reads_what_the_text_says() -> None:
    metrics = counted()
    families = decoded(encode(metrics.registry))
    (series,) = families["inkserve_rejected_requests_total"].metric
    assert (families["inkserve_rejected_requests_total"].type, series.counter.value) == (0, 1.0)
    assert {pair.name: pair.value for pair in series.label} == {"model": "cnn", "reason": "deadline"}
    assert families["inkserve_ready"].metric[0].gauge.value == 1.0
    assert families["inkserve_build_info"].metric[0].gauge.value == 1.0
    seconds = families["inkserve_request_seconds"]
    assert (seconds.type, seconds.help) == (4, "From a request's arrival to its response.")
    by_route = {series.label[0].value: series.histogram for series in seconds.metric}
    classify = by_route["/classify"]
    assert (classify.sample_count, classify.sample_sum) == (6, pytest.approx(8.0061))
    assert [bucket.upper_bound for bucket in classify.bucket] == [*SECONDS, math.inf]
    assert classify.bucket[-1].cumulative_count == 6
    (exemplar,) = [bucket.exemplar for bucket in classify.bucket if bucket.HasField("exemplar")]
    assert (exemplar.label[0].value, exemplar.value) == ("ab", 0.25)
    assert exemplar.timestamp.seconds > 1.7e9
    assert (classify.schema, classify.zero_threshold, classify.zero_count) == (3, ZERO_THRESHOLD, 1)
    assert expanded(classify) == {-67: 1, -66: 1, -16: 2, 24: 1}
    assert expanded(by_route["/generate"]) == {0: 1}


def test_processes_are_summed() -> None:
    families = [list(counted().registry.collect()) for _ in range(2)]
    sent = [Frame(4, messages.metrics_header(1, "", each), memoryview(b"")) for each in families]
    read = [messages.read_metrics(frame)[1] for frame in sent]
    total = decoded(encode(registry_of(merge([*read[0], *read[1]]))))["inkserve_request_seconds"]
    by_route = {series.label[0].value: series.histogram for series in total.metric}
    assert expanded(by_route["/classify"]) == {-67: 2, -66: 2, -16: 4, 24: 2}
    assert (by_route["/classify"].zero_count, by_route["/classify"].sample_count) == (2, 12)


PROMETHEUS = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""What Prometheus 2.42 sends with its feature flag native-histograms."""


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PROMETHEUS, True),
        (CONTENT_TYPE, True),
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        (f"text/plain, {CONTENT_TYPE};q=0.5", False),
        (f"text/plain;q=0.4, {CONTENT_TYPE};q=0.5", True),
        (f"{CONTENT_TYPE};q=0", False),
        (f"{CONTENT_TYPE};q=x", False),
        ("application/vnd.google.protobuf", False),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", False),
    ],
)
def test_the_format_is_sent_to_those_who_prefer_it(accept: str, wanted: bool) -> None:
    assert is_wanted(accept) is wanted
