"""Load on a running pod, and the CPU time and batches that it took."""

import math
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from loadtests.generator import Outcome, Plan, generate
from loadtests.service_process import ROOT, Service

DIGITS = (ROOT / "tests" / "digits" / "digits.raw").read_bytes()
ROW_BYTES = 784
CONNECTIONS = 1024
OPENING_SECONDS = 1.0
"""The start of an open loop, in which most connections are opened: it is not counted. At 80 % of the
saturation the p99 of this second was 67, 8 and 22 ms in three trials, and the median of the seconds after it
8, 6 and 8."""
ATTEMPTS = 3
"""How often a closed loop is offered at most, until one of its requests is answered in its time."""


@dataclass(frozen=True)
class Step:
    """The result of one offered rate. Rates are per second; latencies count from the due time.

    late_p99_seconds: how late the generator itself sent. generator_cpu_share: the fraction of one core that
    it used, nan if unknown; near 1 the figures are the generator's, not the service's.
    """

    offered_rate: float
    answered_rate: float
    shed: int
    failed: int
    p50_seconds: float
    p99_seconds: float
    late_p99_seconds: float
    generator_cpu_share: float = math.nan

    def meets(self, p99_seconds: float) -> bool:
        """Whether every request was answered, 99 of 100 within this latency."""
        return not self.shed and not self.failed and self.p99_seconds <= p99_seconds


@dataclass(frozen=True)
class Spent:
    """What a service spent under load: CPU seconds of its process and of its main thread, and its batches.

    answered, refused: requests answered 200 and 429. main_cpu_seconds: of the main thread, which runs the
    event loop and inline batches; main_delay_seconds: how long it was runnable without a core.
    batches, compute_seconds: their number, and their wall time. rows: of all batches; padded_rows: with
    padding.
    """

    step: Step
    answered: float
    refused: float
    cpu_seconds: float
    main_cpu_seconds: float
    main_delay_seconds: float
    batches: float
    compute_seconds: float
    rows: float
    padded_rows: float


def post_request(port: int, rows: int) -> bytes:
    """A whole HTTP request that classifies `rows` raw images: the shipped digits, repeated."""
    body = (DIGITS * (rows // 10 + 1))[: rows * ROW_BYTES]
    head = (
        f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n\r\n"
    )
    return head.encode("ascii") + body


def step_of(outcome: Outcome, opening_seconds: float = 0.0) -> Step:
    """The figures of an open or closed loop. opening_seconds: the start, which is not counted."""
    counted, seconds = outcome.due >= opening_seconds, outcome.seconds - opening_seconds
    answered = counted & (outcome.status == 200)
    latency = (outcome.done - outcome.due)[answered]
    lateness = (outcome.sent - outcome.due)[counted & ~np.isnan(outcome.sent)]
    return Step(
        offered_rate=float(np.sum(counted) / seconds),
        answered_rate=float(np.sum(answered & (outcome.done <= outcome.seconds)) / seconds),
        shed=int(np.sum(counted & (outcome.status == 429))),
        failed=int(np.sum(counted & ~answered & (outcome.status != 429))),
        p50_seconds=float(np.quantile(latency, 0.5)) if len(latency) else math.inf,
        p99_seconds=float(np.quantile(latency, 0.99)) if len(latency) else math.inf,
        late_p99_seconds=float(np.quantile(lateness, 0.99)) if len(lateness) else math.inf,
        generator_cpu_share=outcome.cpu_share,
    )


class MeasuredPod:
    """Loads a running service and reads what it spent. seconds: the length of each load."""

    def __init__(self, service: Service, model: str, seconds: float) -> None:
        self._service = service
        self._model = model
        self._seconds = seconds
        self._process = psutil.Process(service.pid)

    def closed(self, rows: int, connections: int) -> Step:
        """Load by closed-loop callers, each with one request in flight; the first second is not counted.

        A machine may stand still for all of a short load, so a load without an answer is offered again.
        Raises ValueError if each of ATTEMPTS had none: rates are divided by that of a closed loop.
        """
        request = post_request(self._service.port, rows)
        generate(Plan(self._service.port, request, None, min(1.0, self._seconds), connections))
        for _ in range(ATTEMPTS):
            step = step_of(generate(Plan(self._service.port, request, None, self._seconds, connections)))
            if step.answered_rate:
                return step
        raise ValueError(
            f"{ATTEMPTS} loads of {self._seconds:g} s by {connections} callers got no response 200 in their "
            "time: is the machine busy?"
        )

    def open(self, rate: float, seed: int) -> Spent:
        """Poisson arrivals of one-image requests; the step is without the first OPENING_SECONDS."""
        port, seconds = self._service.port, OPENING_SECONDS + self._seconds
        plan = Plan(port, post_request(port, 1), rate, seconds, CONNECTIONS, seed=seed)
        before = self._spent()
        step = step_of(generate(plan), OPENING_SECONDS)
        return Spent(step, **self._since(before))

    def largest_batch(self, rows: int) -> int:
        """The mean rows of the batches that a lone caller's requests of `rows` images form."""
        before = self._spent()
        self.closed(rows, 1)
        spent = self._since(before)
        return round(spent["rows"] / spent["batches"])

    def spend(self, connections: int) -> Spent:
        """Load by closed-loop callers of one image each, and what the service spent on it."""
        before = self._spent()
        step = self.closed(1, connections)
        return Spent(step, **self._since(before))

    def _since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: after - before[name] for name, after in self._spent().items()}

    def _spent(self) -> dict[str, float]:
        samples = self._samples()

        def total(name: str, **labels: str) -> float:
            return sum(
                sample.value
                for sample in samples
                if sample.name == name and labels.items() <= sample.labels.items()
            )

        running, waiting = _running_and_waiting(self._process.pid)
        rows = total("inkserve_batch_rows_sum")
        return {
            "answered": total("inkserve_requests_total", status="200"),
            "refused": total("inkserve_requests_total", status="429"),
            "cpu_seconds": sum(self._process.cpu_times()[:2]),
            "main_cpu_seconds": running,
            "main_delay_seconds": waiting,
            "batches": total("inkserve_batch_compute_seconds_count"),
            "compute_seconds": total("inkserve_batch_compute_seconds_sum"),
            "rows": rows,
            "padded_rows": rows + total("inkserve_padding_rows_total"),
        }

    def _samples(self) -> list[Sample]:
        """The model's metrics, read once, because rendering them is work of the event loop too."""
        text = httpx.get(f"{self._service.url}/metrics").text
        return [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("model") == self._model
        ]


def _running_and_waiting(pid: int) -> tuple[float, float]:
    """Seconds that a process's main thread ran, and that it waited for a core: see proc(5), schedstat."""
    running, waiting, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(running) / 1e9, int(waiting) / 1e9
