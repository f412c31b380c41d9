"""A pod that runs: load on it, what it took, and the model's costs from that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.generator import Outcome, Plan, generate
from loadtests.pod import PodCosts
from loadtests.service_process import ROOT, Service
from service.device import INLINE_ROWS
from service.repository import default_threads

DIGITS = (ROOT / "tests" / "digits" / "digits.raw").read_bytes()
ROW_BYTES = 784
CONNECTIONS = 1024


@dataclass(frozen=True)
class Step:
    """What one offered rate led to. Rates are per second; latencies count from the time due.

    late_p99_seconds: by how much the generator itself sent too late. generator_cpu_share: of one core; near 1
    the figures tell of the generator, not of the service. nan where it was not noted.
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
        """Whether every request was answered, and 99 of 100 in time."""
        return not self.shed and not self.failed and self.p99_seconds <= p99_seconds


@dataclass(frozen=True)
class Batches:
    """What the service says of the batches that it ran. rows, seconds: the mean of one."""

    rows: float
    seconds: float


@dataclass(frozen=True)
class Spent:
    """What a service took under load: CPU seconds of its process and of its main thread, and its batches.

    answered, refused: requests in that time. main_cpu_seconds: of the main thread, which is the event loop
    and runs short batches; main_delay_seconds: in which it could have run, and had no core.
    compute_seconds: of the batches, by the clock. batch_rows: the mean.
    """

    step: Step
    answered: float
    refused: float
    cpu_seconds: float
    main_cpu_seconds: float
    main_delay_seconds: float
    compute_seconds: float
    batch_rows: float

    @property
    def computing_seconds(self) -> float:
        """Of the batches with a core: being without one falls on batches and requests alike."""
        with_core = self.main_cpu_seconds / (self.main_cpu_seconds + self.main_delay_seconds)
        return with_core * self.compute_seconds

    def loop_share(self, costs: PodCosts) -> float:
        """The part of the batches that the main thread ran.

        Where onnxruntime has no threads of its own, what other threads computed were the other batches. Else
        what the service would have done with such batches.
        """
        if default_threads(costs.cores) > 1:
            return float(self.batch_rows <= costs.inline_rows)
        others = (self.cpu_seconds - self.main_cpu_seconds) / self.computing_seconds
        return min(1.0, max(0.0, 1.0 - others))


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
        generator_cpu_share=outcome.cpu_share,
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

    def batches_of(self, rows: int) -> Batches:
        """One caller's requests of so many rows, which make a batch each, or several where they must."""
        count, seconds, run = self._computed()
        self.closed(rows, 1)
        count_after, seconds_after, run_after = self._computed()
        batches = count_after - count
        return Batches((run_after - run) / batches, (seconds_after - seconds) / batches)

    def spend(self, connections: int) -> Spent:
        """Load by so many callers of one image each, and what the service took for it."""
        before = self._spent()
        step = self.closed(1, connections)
        answered, refused, cpu, main_cpu, main_delay, batches, compute, rows = (
            after - earlier for earlier, after in zip(before, self._spent(), strict=True)
        )
        return Spent(step, answered, refused, cpu, main_cpu, main_delay, compute, rows / max(batches, 1.0))

    def _spent(self) -> tuple[float, ...]:
        requests = (self._metric("inkserve_requests_total", status=status) for status in ("200", "503"))
        cpu = sum(self._process.cpu_times()[:2])
        return (*requests, cpu, *_running_and_waiting(self._process.pid), *self._computed())

    def _computed(self) -> tuple[float, float, float]:
        """Batches run, the seconds that they took, and their rows."""
        name = "inkserve_compute_seconds"
        rows = self._metric("inkserve_batch_rows_sum")
        return self._metric(f"{name}_count"), self._metric(f"{name}_sum"), rows

    def _metric(self, name: str, **labels: str) -> float:
        """The sum over the model's samples of that name and with these labels."""
        labels |= {"model": self._model}
        text = httpx.get(f"{self._service.url}/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def costs_of(
    device: Sequence[Batches],
    answering: Spent,
    refusing: Spent,
    unloaded_seconds: float,
    start_seconds: float,
    cores: int,
) -> PodCosts:
    """The model's costs, from batches of several sizes and from a service that answers or refuses.

    The event loop's are its thread's CPU time less its part of the batches that ran on it. That part is
    what they took by the clock, for onnxruntime's other threads do theirs at the same time, less the time
    without a core. A request costs no less than a refusal.
    """
    batch_seconds, row_seconds = _fit(device)
    costs = PodCosts(batch_seconds, row_seconds, 0.0, 0.0, 0.0, start_seconds, cores=cores)
    largest = round(max(batches.rows for batches in device))
    if largest < INLINE_ROWS:  # larger ones may have been cut to fit the loop
        costs = replace(costs, max_batch_size=largest)
    request_seconds = _loop_seconds(answering, costs) / answering.answered
    loop_seconds = _loop_seconds(refusing, costs)
    refuse_seconds = (loop_seconds - refusing.answered * request_seconds) / max(refusing.refused, 1.0)
    if request_seconds < refuse_seconds:
        request_seconds = refuse_seconds = loop_seconds / (refusing.answered + refusing.refused)
    if refuse_seconds <= 0:
        raise ValueError("the batches took longer than the thread that ran them: is the machine busy?")
    overhead = unloaded_seconds - request_seconds - costs.device_seconds(1)
    return replace(
        costs,
        request_seconds=request_seconds,
        refuse_seconds=refuse_seconds,
        overhead_seconds=max(0.0, overhead),
    )


def _loop_seconds(spent: Spent, costs: PodCosts) -> float:
    return spent.main_cpu_seconds - spent.loop_share(costs) * spent.computing_seconds


def _running_and_waiting(pid: int) -> tuple[float, float]:
    """Seconds for which a process's main thread had a core, and wanted one: see proc(5), schedstat."""
    running, waiting, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(running) / 1e9, int(waiting) / 1e9


def _fit(device: Sequence[Batches]) -> tuple[float, float]:
    """The line a + b * rows through the times, each weighed by its own size, neither below 0."""
    rows = np.array([point.rows for point in device], float)
    seconds = np.array([point.seconds for point in device])
    terms = np.stack([np.ones_like(rows), rows], axis=1) / seconds[:, None]
    (a, b), *_ = np.linalg.lstsq(terms, np.ones_like(seconds), rcond=None)
    return max(float(a), 0.0), max(float(b), 1e-9)
