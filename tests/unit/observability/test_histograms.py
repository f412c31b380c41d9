"""Counting by the thousand says what prometheus_client's own Histogram would."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.exposition import choose_encoder

from service.observability.histograms import FOLD_AT, DeferredHistogram, RequestMetrics, Tally
from service.observability.metrics import SECONDS

durations = st.lists(st.one_of(st.floats(0, 40), st.sampled_from(SECONDS)), max_size=50)


@pytest.mark.slow
@given(durations)
def test_a_histogram_has_the_samples_of_the_librarys(seconds: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = DeferredHistogram("a_seconds", "A.", SECONDS, "model")
    ours.register(tallies)
    histogram = Histogram("a_seconds", "A.", ["model"], registry=theirs, buckets=SECONDS).labels("m")
    tally = tallies.of("m")
    for value in seconds:
        histogram.observe(value)
    tally.extend(seconds)
    for family in theirs.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                seen = ours.get_sample_value(sample.name, sample.labels)
                assert seen == pytest.approx(sample.value), sample


def test_many_are_folded_as_they_come_and_none_is_lost() -> None:
    tally = Tally([1.0, 2.0])
    for index in range(FOLD_AT + 10):
        tally.add(index % 3 + 0.5)
    tally.extend([2.0] * FOLD_AT)
    assert tally.total() == 2 * FOLD_AT + 10
    third = (FOLD_AT + 10) // 3
    assert tally.counts().tolist() == [third + 1, third + 1 + FOLD_AT, third]
    assert len(tally.pending) == 0


def test_each_bucket_shows_its_newest_exemplar_in_openmetrics_alone() -> None:
    registry = CollectorRegistry()
    requests = RequestMetrics("x", (0.1, 0.5, 1.0), 0.5)
    registry.register(requests)
    for status, seconds, trace in [(200, 0.2, "a"), (504, 0.5, "b"), (200, 3.0, "c")]:
        tally = requests.of("/r", "m", status)
        tally.add(seconds)
        tally.note_exemplar(seconds, {"trace_id": trace})
    encode, _ = choose_encoder("application/openmetrics-text")
    shown = re.findall(r'_bucket{le="(.*?)".*} \S+ # {(.*)} (\S+)', encode(registry).decode())
    assert shown == [("0.5", 'trace_id="b"', "0.5"), ("+Inf", 'trace_id="c"', "3.0")]
    assert b"trace_id" not in generate_latest(registry)


def test_requests_are_told_apart_and_good_ones_counted() -> None:
    registry = CollectorRegistry()
    requests = RequestMetrics("x", (0.1, 0.5, 1.0), 0.5)
    registry.register(requests)
    for model, status, seconds in [
        ("a", 200, 0.5),
        ("a", 200, 0.51),
        ("a", 503, 0.01),
        ("b", 200, 0.01),
        ("", 404, 0.01),
    ]:
        requests.of("/r", model, status).add(seconds)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"route": "/r", **labels})

    assert value("x_requests_total", model="a", status="200") == 2
    assert value("x_requests_total", model="a", status="503") == 1
    assert value("x_requests_total", model="", status="404") == 1
    assert value("x_good_requests_total", model="a") == 1
    assert value("x_good_requests_total", model="b") == 1
    assert value("x_good_requests_total", model="") is None
    assert value("x_request_seconds_bucket", le="0.5") == 4
    assert value("x_request_seconds_count") == 5
    assert value("x_request_seconds_sum") == pytest.approx(1.04)


def test_values_counted_as_an_array_count_as_single_ones_do() -> None:
    values = np.array([0.5, 1.0, 1.5, 7.0], np.float32)
    one, many = Tally([1.0, 5.0]), Tally([1.0, 5.0])
    for value in values.tolist():
        one.add(value)
    many.add(0.25)
    many.count(values)
    one.add(0.25)
    assert many.counts().tolist() == one.counts().tolist() == [3, 1, 1]
    assert (many.total(), many.sum()) == (one.total(), one.sum())
