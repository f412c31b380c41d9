"""The command `python -m loadtests.open_loop`: measure latency under load, and goodput under overload.

The load does not wait for the server: see `loadtests.generator`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests import machine, open_loop_report
from loadtests.generator import Outcome, Plan, generate
from loadtests.interrupts import exit_code
from loadtests.outputs import (
    Unfinished,
    add_output_arguments,
    chosen_output,
    replacing,
    shown,
    write_text,
)
from loadtests.peers import wire
from loadtests.peers.contestants import ASGI, Contestant, inkserve, newest_graph
from loadtests.peers.measure import images_of, right_answer
from loadtests.placement import place
from loadtests.processes import end_servers_on_sigterm, free_port, serving
from loadtests.progress import doing, say

LOADS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 2.0, 5.0)
"""Offered loads, in capacities."""

IMAGES = (1, 16, 64)
SECONDS = 8.0
MODEL = "mlp"
MODELS = machine.ROOT / "models"
PUBLISHED = machine.RESULTS / "open_loop"
FIGURE = machine.ROOT / "docs" / "latency.png"

CAPACITY_CONNECTIONS = 64
CAPACITY_PARTS = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Fractions of the rate of a closed loop of CAPACITY_CONNECTIONS, which no open loop may reach, because
callers that wait for each other fill the batches. With one image per request: 23,200 requests/s closed,
16,200 open."""

TIMEOUT_HEADER = "inkserve-timeout"
WARM_UP_SECONDS = 1.0
NICENESS = -10
"""The generator's priority, so that it sends in time on few cores; the server gets the remainder. It
runs on the last core only: otherwise each response wakes it on the core of the event loop that wrote it,
while another may be idle. With 64 images per request at twice the capacity on 2 cores, 79 % of the peak were
answered in time without this, 99 % with it."""

SATURATED_LATENESS_SECONDS = 0.005
SATURATED_CPU_SHARE = 0.9

Json = dict[str, Any]
Run = Callable[[Plan], Outcome]


@dataclass(frozen=True)
class Point:
    """The result of one offered load. Rates are per second of the load, latencies count from the due time.

    goodput: answered 200 within the deadline. rejected_*: responses with 429, timed from sending. expired:
    responses with 504, for requests whose deadline passed in the queue. waited: requests that found no free
    connection. late_*: how long after their due time the others were sent. generator_saturated: the figures
    are then the generator's, not the server's.
    """

    load: float
    offered: float
    sent: float
    answered: float
    goodput: float
    rejected: float
    expired: float
    failed: int
    p50_seconds: float
    p99_seconds: float
    p999_seconds: float
    rejected_p50_seconds: float
    rejected_p99_seconds: float
    rejected_max_seconds: float
    waited: int
    late_p50_seconds: float
    late_p99_seconds: float
    connections: int
    generator_cpu_share: float
    generator_saturated: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parsed = command_line().parse_args(arguments)
    end_servers_on_sigterm()
    _allow_many_sockets()
    output = chosen_output(parsed, PUBLISHED, full=is_full_run(parsed))
    figure = parsed.figure or (FIGURE if output == PUBLISHED else output.with_suffix(".png"))
    result: Json = {"machine": machine.describe(), "flags": parsed.flags, "scenarios": []}
    result |= {"deadline_seconds": parsed.deadline_seconds, "seconds": parsed.seconds}
    unfinished = Unfinished("open_loop")
    with unfinished.kept(), _generator_process() as run:
        with doing("how much the generator can send"):
            result["generator"] = _measure_generator(run, parsed)
        say(f"generator: at most {result['generator']['requests_per_second']:,.0f} requests/s")
        for rows in parsed.images:
            scenario: Json = {"images": rows, "points": []}
            result["scenarios"].append(scenario)
            for point in _scenario(run, rows, scenario, parsed):
                say(f"  {open_loop_report.one_line(asdict(point))}")
                scenario["points"].append(asdict(point))
                unfinished.write(_texts(result))
        for suffix, text in _texts(result).items():
            write_text(output.with_suffix(suffix), text)
        with replacing(figure) as part:
            open_loop_report.draw(result, part)
    print(open_loop_report.markdown(result))
    say(f"written: {shown(output)}.json and .md, {shown(figure)}")
    return 0


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run measures what the published report is about, for as long."""
    same = {"images": list(IMAGES), "model": MODEL, "flags": "", "models_dir": MODELS}
    whole = all(getattr(parsed, name) == value for name, value in same.items())
    return whole and tuple(parsed.loads) == LOADS and parsed.seconds >= SECONDS


def _texts(result: Json) -> dict[str, str]:
    return {".json": json.dumps(result, indent=1) + "\n", ".md": open_loop_report.markdown(result)}


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.open_loop", description=__doc__)
    add = parser.add_argument
    add(
        "--images",
        type=int,
        nargs="+",
        default=list(IMAGES),
        help="images per request; one scenario for each (default: 1 16 64)",
    )
    add("--seconds", type=float, default=SECONDS, help="seconds per load (default: 8)")
    add(
        "--deadline-seconds",
        type=float,
        default=0.25,
        help="deadline of each request in seconds; later responses are no goodput (default: 0.25)",
    )
    add("--connections", type=int, default=1024, help="maximum connections of the generator (default: 1024)")
    loads = " ".join(f"{load:g}" for load in LOADS)
    add(
        "--loads",
        type=float,
        nargs="+",
        default=LOADS,
        help=f"loads, in capacities (default: {loads})",
    )
    add("--model", default=MODEL, help="classifier to load (default: mlp)")
    threads = max(1, machine.cores() - 1)
    add("--threads", type=int, default=threads, help="onnxruntime threads (default: cores less one)")
    add("--flags", default="", help="more flags of `python -m service`, as one argument")
    add("--models-dir", type=Path, default=MODELS, help="folder of models (default: models/)")
    add_output_arguments(parser, PUBLISHED, what="path of the report, without .json and .md")
    add(
        "--figure",
        type=Path,
        help="where to draw the figure (default: docs/latency.png if the report is published, "
        "otherwise next to the report)",
    )
    return parser


def _scenario(run: Run, rows: int, scenario: Json, parsed: argparse.Namespace) -> Iterator[Point]:
    """Find the capacity with `rows` images per request, which is the best goodput; then measure each load."""
    contestant = inkserve("inkserve", "", shlex.split(parsed.flags), model=parsed.model)
    with _started(contestant, parsed) as port:
        request = _request(port, contestant, rows, {TIMEOUT_HEADER: f"{parsed.deadline_seconds:g}"})
        run(Plan(port, request, None, WARM_UP_SECONDS, CAPACITY_CONNECTIONS))
        with doing("closed loop"):
            outcome = run(Plan(port, request, None, parsed.seconds / 2, CAPACITY_CONNECTIONS))
        scenario["closed_loop"] = closed = _rate(outcome, outcome.status == 200)

        def at(rate: float, seconds: float, seed: int) -> Outcome:
            with doing(f"{rate:,.0f} requests/s"):
                return run(Plan(port, request, rate, seconds, parsed.connections, seed=seed))

        tried = [at(part * closed, parsed.seconds / 2, seed) for seed, part in enumerate(CAPACITY_PARTS, 100)]
        points = [summarise(0.0, outcome, parsed.deadline_seconds) for outcome in tried]
        scenario["capacity"] = capacity = max(point.goodput for point in points)
        say(f"{rows} images per request: capacity {capacity:,.0f} requests/s, closed loop {closed:,.0f}")
        for seed, load in enumerate(parsed.loads):
            yield summarise(load, at(load * capacity, parsed.seconds, seed), parsed.deadline_seconds)


def summarise(load: float, outcome: Outcome, deadline_seconds: float) -> Point:
    """The figures of one load, from the results of its requests."""
    latency = outcome.done - outcome.due
    good = outcome.status == 200
    rejected = outcome.status == 429
    expired = outcome.status == 504
    lateness = (outcome.sent - outcome.due)[~np.isnan(outcome.sent) & ~outcome.waited]
    rejection = (outcome.done - outcome.sent)[rejected]
    late_p99 = _quantile(lateness, 0.99)
    return Point(
        load=load,
        offered=len(outcome.due) / outcome.seconds,
        sent=_rate(outcome, outcome.sent <= outcome.seconds),
        answered=_rate(outcome, good),
        goodput=_rate(outcome, good & (latency <= deadline_seconds)),
        rejected=_rate(outcome, rejected),
        expired=_rate(outcome, expired),
        failed=int(np.sum(~good & ~rejected & ~expired)),
        p50_seconds=_quantile(latency[good], 0.5),
        p99_seconds=_quantile(latency[good], 0.99),
        p999_seconds=_quantile(latency[good], 0.999),
        rejected_p50_seconds=_quantile(rejection, 0.5),
        rejected_p99_seconds=_quantile(rejection, 0.99),
        rejected_max_seconds=_quantile(rejection, 1.0),
        waited=int(np.sum(outcome.waited)),
        late_p50_seconds=_quantile(lateness, 0.5),
        late_p99_seconds=late_p99,
        connections=outcome.connections,
        generator_cpu_share=outcome.cpu_share,
        generator_saturated=late_p99 > SATURATED_LATENESS_SECONDS or outcome.cpu_share > SATURATED_CPU_SHARE,
    )


def _measure_generator(run: Run, parsed: argparse.Namespace) -> Json:
    """The generator's limit: load an application that does nothing."""
    with _started(ASGI, parsed) as port:
        request = _request(port, ASGI, 1)
        run(Plan(port, request, None, WARM_UP_SECONDS, CAPACITY_CONNECTIONS))
        outcome = run(Plan(port, request, None, parsed.seconds, CAPACITY_CONNECTIONS))
        most = _rate(outcome, outcome.status == 200)
        plan = Plan(port, request, most / 2, parsed.seconds, parsed.connections)
        half = summarise(0.5, run(plan), parsed.deadline_seconds)
    return {
        "requests_per_second": most,
        "cpu_share": outcome.cpu_share,
        "cpu_seconds_per_request": outcome.cpu_share / most,
        "at_half": asdict(half),
    }


@contextmanager
def _started(contestant: Contestant, parsed: argparse.Namespace) -> Iterator[int]:
    """Run a server until the block ends; gives its port."""
    port = free_port()
    models_dir = parsed.models_dir.resolve()
    command, environment = contestant.launch(port, models_dir, parsed.threads)
    images = images_of(1)
    expected: NDArray[np.float32] = np.zeros((1, 10), np.float32)  # the response of the empty application
    if contestant.model:
        expected = right_answer(newest_graph(models_dir, contestant.model), images)

    def ready() -> bool:
        return wire.agrees(port, contestant.path, contestant.wire, images, expected)

    with serving(command, ready, directory=contestant.directory, environment=environment):
        yield port


@contextmanager
def _generator_process() -> Iterator[Run]:
    """Give a function that runs plans in a process of its own, at a higher priority if the system permits."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_be_prompt) as pool:
        try:
            yield lambda plan: pool.submit(generate, plan).result(plan.seconds + plan.patience_seconds + 60)
        except BaseException:  # without this, the pool would wait for the end of the plan
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _be_prompt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.sched_setaffinity(0, place().generator_cores)
    try:
        os.nice(NICENESS)
    except PermissionError:  # only root may raise it; the report has the lateness in any case
        print("loadtests: the generator runs at normal priority", file=sys.stderr)


def _allow_many_sockets() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))


def _request(port: int, contestant: Contestant, rows: int, more: Mapping[str, str] | None = None) -> bytes:
    body, headers = contestant.wire.encode(images_of(rows))
    headers = {**headers, **(more or {})}
    lines = [f"POST {contestant.path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _rate(outcome: Outcome, which: NDArray[np.bool_]) -> float:
    return float(np.sum(which) / outcome.seconds)


def _quantile(values: NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else 0.0


if __name__ == "__main__":
    sys.exit(exit_code(main))
