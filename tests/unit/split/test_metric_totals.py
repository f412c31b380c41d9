"""Several processes' metrics as one."""

import re
import time

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, generate_latest
from prometheus_client.exposition import choose_encoder

from service.split.frames import FrameReader, frame_pieces
from service.split.messages import metrics_header, read_metrics
from service.split.metric_totals import Totals, registry_of


class Process:
    """Metrics of one process of the service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests.", ["route"], registry=self.registry)
        self.seconds = Histogram("seconds", "Seconds.", buckets=(1.0, 2.0), registry=self.registry)
        self.waiting = Gauge("waiting", "Rows.", registry=self.registry)
        self.started = Gauge("process_start_time_seconds", "Start.", registry=self.registry)
        self.ready = Gauge("inkserve_ready", "Ready.", registry=self.registry)
        self.build = Info("build", "Versions.", registry=self.registry)
        self.build.info({"version": "1"})

    def push(self, totals: Totals, role: str, run: str = "1") -> None:
        totals.update(role, run, self.registry.collect())


def value(totals: Totals, name: str, **labels: str) -> float | None:
    return totals.registry().get_sample_value(name, labels)


def across_a_frame(registry: CollectorRegistry) -> list[Metric]:
    stream = b"".join(frame_pieces(4, metrics_header(1, "run", list(registry.collect()))))
    (frame,) = FrameReader(0).feed(stream)
    run, families = read_metrics(frame)
    assert run == "run"
    return families


def in_openmetrics(registry: CollectorRegistry) -> str:
    encode, _ = choose_encoder("application/openmetrics-text")
    return encode(registry).decode()


@pytest.fixture
def processes() -> tuple[Process, Process]:
    first, second = Process(), Process()
    first.requests.labels("/a").inc(3)
    second.requests.labels("/a").inc(4)
    second.requests.labels("/b").inc()
    first.seconds.observe(1.5)
    second.seconds.observe(0.5)
    first.waiting.set(5)
    second.waiting.set(6)
    first.ready.set(1)
    first.started.set(100)
    second.started.set(200)
    return first, second


def test_what_counts_adds_up_and_what_names_does_not(processes: tuple[Process, Process]) -> None:
    totals = Totals()
    for number, process in enumerate(processes):
        process.push(totals, f"worker {number}")
    assert value(totals, "requests_total", route="/a") == 7
    assert value(totals, "requests_total", route="/b") == 1
    assert value(totals, "seconds_bucket", le="1.0") == 1
    assert value(totals, "seconds_bucket", le="+Inf") == 2
    assert value(totals, "seconds_sum") == 2.0
    assert value(totals, "waiting") == 11
    assert value(totals, "process_start_time_seconds") == 100
    assert value(totals, "inkserve_ready") == 0
    processes[1].ready.set(1)
    processes[1].push(totals, "worker 1")
    assert value(totals, "inkserve_ready") == 1
    assert value(totals, "build_info", version="1") == 1


def test_a_process_that_died_keeps_its_counts_and_loses_its_gauges(
    processes: tuple[Process, Process],
) -> None:
    totals = Totals()
    for number, process in enumerate(processes):
        process.push(totals, f"worker {number}")
    totals.lose("worker 0")
    assert value(totals, "requests_total", route="/a") == 7
    assert value(totals, "waiting") == 6
    again = Process()
    for run in ("2", "3"):
        again.push(totals, "worker 0", run)
        assert value(totals, "requests_total", route="/a") == 7
    again.requests.labels("/a").inc()
    again.push(totals, "worker 0", "3")
    assert value(totals, "requests_total", route="/a") == 8
    assert value(totals, "seconds_count") == 2


def test_one_process_alone_reads_as_it_would_without(processes: tuple[Process, Process]) -> None:
    totals = Totals()
    processes[1].push(totals, "only")
    assert generate_latest(totals.registry()) == generate_latest(processes[1].registry)


def test_the_newest_exemplar_of_the_processes_is_shown(
    processes: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = Totals()
    for number, (process, noted_at) in enumerate(zip(processes, (20.0, 10.0), strict=True)):
        monkeypatch.setattr(time, "time", lambda noted_at=noted_at: noted_at)
        process.seconds.observe(1.7, {"trace_id": f"of worker {number}"})
        crossed = across_a_frame(process.registry)
        totals.update(f"worker {number}", "1", crossed)
    text = in_openmetrics(totals.registry())
    assert re.findall("# (.*)", text.partition('le="2.0"')[2].splitlines()[0]) == [
        '{trace_id="of worker 0"} 1.7 20.0'
    ]


def test_metrics_cross_a_frame_unchanged(processes: tuple[Process, Process]) -> None:
    registry = processes[0].registry
    assert generate_latest(registry_of(across_a_frame(registry))) == generate_latest(registry)
