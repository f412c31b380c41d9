"""The load that autoscalers act on, from counters at two times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability.load import IDLE, Counts, LoadMeter, read_counts
from service.observability.metrics import Metrics


def counts(at: float, work: dict[str, float], ended: float = 0, shed: float = 0, queued: float = 0) -> Counts:
    return Counts(at, work, ended, shed, 0.0, queued)


def test_the_part_that_works_most_and_what_was_shed_add_up() -> None:
    meter = LoadMeter(max_queued=10)
    meter.note(counts(100, {"device": 3.0, "http": 5.0}, ended=1000, shed=50))
    meter.note(counts(110, {"device": 11.0, "http": 9.0}, ended=1400, shed=58, queued=5))
    load = meter.over(10)
    assert load.work == pytest.approx(0.8)
    assert load.shed == pytest.approx(0.02)
    assert load.load == pytest.approx(1.0)
    assert (load.requests_per_second, load.errors_per_second) == (40, pytest.approx(0.8))
    assert load.queued == 0.5


def test_a_window_holds_only_its_own_seconds() -> None:
    meter = LoadMeter(max_queued=1)
    for second in range(100):  # work for the first minute only
        meter.note(counts(second, {"http": min(second, 60.0)}))
    assert meter.over(5).load == 0
    assert meter.over(30).load == 0
    for second in range(100, 120):
        meter.note(counts(second, {"http": 60.0 + second - 99}))
    assert meter.over(5).load == pytest.approx(1)
    assert meter.over(30).load == pytest.approx(20 / 30)


def test_nothing_is_known_before_the_second_sample() -> None:
    meter = LoadMeter(max_queued=1)
    assert meter.over(30) == IDLE
    meter.note(counts(5, {"http": 500.0}))
    assert meter.over(30) == IDLE


def test_a_part_counts_from_when_it_was_first_seen() -> None:
    meter = LoadMeter(max_queued=1)
    meter.note(counts(0, {"http": 0.0}))
    meter.note(counts(4, {"http": 0.4, "engine": 1000.0}))
    assert meter.over(30).work == pytest.approx(0.1)
    meter.note(counts(10, {"http": 1.0, "engine": 1006.0}))
    assert meter.over(30).work == pytest.approx(0.6)


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 1), st.integers(0, 100), st.floats(0, 1)), min_size=2)
)
def test_a_load_is_never_negative_and_at_most_2(steps: list[tuple[float, float, int, float]]) -> None:
    meter = LoadMeter(max_queued=4)
    at = work = ended = shed = 0.0
    for seconds, share, requests, refused in steps:
        at, work, ended = at + seconds, work + seconds * share, ended + requests
        shed += requests * refused
        meter.note(counts(at, {"http": work}, ended, shed))
        for window in (1.0, 30.0):
            assert -1e-9 <= meter.over(window).load <= 2 + 1e-6


def test_the_counts_are_read_from_the_metrics_themselves() -> None:
    metrics = Metrics()
    metrics.work_seconds.watch("device", lambda: 4.0)
    metrics.work_seconds.watch("http", lambda: 2.0)
    metrics.watch_queues(lambda: 3, lambda: 1)
    for route, status, times in (
        ("/classify", 200, 5),
        ("/generate", 429, 3),
        ("/classify", 500, 2),
        ("/classify", 400, 1),
        ("/metrics", 200, 7),
    ):
        for _ in range(times):
            metrics.requests.of(route, "m", status).add(0.1)
    expected = Counts(9.0, {"device": 4.0, "http": 2.0}, ended=11, shed=3, failed=2, queued=3)
    assert read_counts(9.0, metrics.load_families()) == expected
    assert read_counts(9.0, metrics.registry.collect()) == expected
