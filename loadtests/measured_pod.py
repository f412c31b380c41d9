"""A pod that runs: load on it, and what it took."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.generator import Outcome, Plan, generate
from loadtests.service_process import ROOT, Service

DIGITS = (ROOT / "tests" / "digits" / "digits.raw").read_bytes()
ROW_BYTES = 784
CONNECTIONS = 1024


@dataclass(frozen=True)
class Step:
    """What one offered rate led to. Rates are per second; latencies count from the time due.

    late_p99_seconds: by how much the generator itself sent too late.
    """

    offered_rate: float
    answered_rate: float
    shed: int
    failed: int
    p50_seconds: float
    p99_seconds: float
    late_p99_seconds: float

    def meets(self, p99_seconds: float) -> bool:
        """Whether every request was answered, and 99 of 100 in time."""
        return not self.shed and not self.failed and self.p99_seconds <= p99_seconds


def post_request(port: int, rows: int) -> bytes:
    """A whole HTTP request to classify the shipped digits, over and over, raw."""
    body = (DIGITS * (rows // 10 + 1))[: rows * ROW_BYTES]
    head = (
        f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n\r\n"
    )
    return head.encode("ascii") + body


def step_of(outcome: Outcome) -> Step:
    """An open or closed loop's outcome in figures."""
    answered = outcome.status == 200
    latency = (outcome.done - outcome.due)[answered]
    lateness = (outcome.sent - outcome.due)[~np.isnan(outcome.sent)]
    return Step(
        offered_rate=len(outcome.due) / outcome.seconds,
        answered_rate=float(np.sum(answered & (outcome.done <= outcome.seconds)) / outcome.seconds),
        shed=int(np.sum(outcome.status == 503)),
        failed=int(np.sum(~answered & (outcome.status != 503))),
        p50_seconds=float(np.quantile(latency, 0.5)) if len(latency) else math.inf,
        p99_seconds=float(np.quantile(latency, 0.99)) if len(latency) else math.inf,
        late_p99_seconds=float(np.quantile(lateness, 0.99)) if len(lateness) else math.inf,
    )


class MeasuredPod:
    """Load on a running service, and what it says that it spent."""

    def __init__(self, service: Service, model: str, seconds: float) -> None:
        self._service = service
        self._model = model
        self._seconds = seconds
        self._process = psutil.Process(service.pid)

    def closed(self, rows: int, connections: int) -> Step:
        """As much as so many callers send who wait for their answers; the first second is not counted."""
        request = post_request(self._service.port, rows)
        generate(Plan(self._service.port, request, None, min(1.0, self._seconds), connections))
        return step_of(generate(Plan(self._service.port, request, None, self._seconds, connections)))

    def open(self, rate: float, seed: int) -> Step:
        """Poisson arrivals of one-image requests."""
        port = self._service.port
        plan = Plan(port, post_request(port, 1), rate, self._seconds, CONNECTIONS, seed=seed)
        return step_of(generate(plan))

    def device_seconds(self, rows: int) -> float:
        """The mean time of a batch of so many rows, as the service's own metrics say."""
        count, seconds = self._computed()
        self.closed(rows, 1)
        count_after, seconds_after = self._computed()
        return (seconds_after - seconds) / (count_after - count)

    @contextmanager
    def counted(self) -> Iterator[dict[str, float]]:
        """Fills in what the service spent for each request inside the block."""
        spent: dict[str, float] = {}
        requests, cpu, device = self._answered(), sum(self._process.cpu_times()[:2]), self._computed()[1]
        yield spent
        requests = self._answered() - requests
        spent["cpu_seconds_per_request"] = (sum(self._process.cpu_times()[:2]) - cpu) / requests
        spent["device_seconds_per_request"] = (self._computed()[1] - device) / requests

    def _computed(self) -> tuple[float, float]:
        """Batches run, and the seconds that they took."""
        name = "inkserve_compute_seconds"
        return self._metric(f"{name}_count"), self._metric(f"{name}_sum")

    def _answered(self) -> float:
        return self._metric("inkserve_requests_total")

    def _metric(self, name: str) -> float:
        """The sum over the model's samples of that name."""
        text = httpx.get(f"{self._service.url}/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels.get("model") == self._model
        )
