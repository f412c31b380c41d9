"""The command `python -m loadtests.split_cost`: the CPU time that the split form adds to a request.

    python -m loadtests.split_cost
    python -m loadtests.split_cost --images 16 64 256 1024 --connections 16 --against ../inkserve-before

wrk posts raw images, one per request or as many as `--images` says. Each round starts a service of one
process and one in the split form, with a model that costs next to nothing, and loads them in turn. The
engine's time is what its process used beyond the model's own, which the same graph is timed for here, at the
mean batch. Page faults are those of all processes: memory that is not used again costs one per 4 kB.
"""

import argparse
import http.client
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from loadtests import small_model, wrk
from loadtests.arguments import at_least_one, checkout
from loadtests.interrupts import exit_code
from loadtests.machine import ROOT, describe
from loadtests.peers.measure import images_of, right_answer
from loadtests.peers.wire import OCTETS, RAW, agrees
from loadtests.processes import Server, ServerFailed, end_servers_on_sigterm, free_port, serving
from loadtests.progress import say

PATH = f"/classify?model={small_model.NAME}"
WARM_UP_SECONDS = 1.0
MODEL_RUNS = 200


@dataclass(frozen=True)
class Sample:
    """CPU time per request in one slice, in microseconds, by the process that used it.

    whole: all processes of the service. engine, workers: those of the split form. model: the model's own.
    batch_rows: mean rows of a batch. page_faults: of all processes, per request.
    """

    whole: float
    engine: float
    workers: float
    model: float
    batch_rows: float
    requests_per_second: float
    p99_ms: float
    page_faults: float = 0.0

    @property
    def engine_beyond_model(self) -> float:
        """What the engine's process used beyond the model's own time."""
        return self.engine - self.model


Slice = Mapping[str, Sample]
"""The samples of the services that were loaded in turn, with the same body."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if nothing could be measured."""
    parsed = _parser().parse_args(arguments)
    if wrk.is_missing():
        return 1
    end_servers_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        graph = small_model.write(Path(folder))
        try:
            slices: dict[int, list[Slice]] = {images: [] for images in parsed.images}
            for number in range(parsed.rounds):
                _round(graph, number, parsed, slices)
        except ServerFailed as error:
            print(f"loadtests: {error}", file=sys.stderr)
            return 1
    print(report(slices, parsed.workers, parsed.connections))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.split_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=at_least_one, default=3, help="times to start every service (default: 3)")
    add("--slices", type=at_least_one, default=3, help="slices per service and round (default: 3)")
    add("--seconds", type=at_least_one, default=2, help="whole seconds per slice (default: 2)")
    add("--workers", type=at_least_one, default=4, help="workers of the split form (default: 4)")
    add("--connections", type=at_least_one, default=256, help="wrk's connections (default: 256)")
    add("--images", type=at_least_one, nargs="+", default=[1], help="images per request (default: 1)")
    add(
        "--against",
        type=checkout,
        metavar="DIR",
        help="another checkout of this project, run beside this one",
    )
    return parser


@dataclass(frozen=True)
class _Target:
    server: Server
    port: int


def _round(graph: Path, number: int, parsed: argparse.Namespace, slices: Mapping[int, list[Slice]]) -> None:
    """Start every form of the service and load each in turn. Raises ServerFailed.

    slices: by the images of a request; each gets this round's.
    """
    split = ["--workers", str(parsed.workers)]
    forms: dict[str, tuple[list[str], Path]] = {"one process": ([], ROOT), "split": (split, ROOT)}
    if parsed.against is not None:
        forms["one process, the other checkout"] = ([], parsed.against)
        forms["split, the other checkout"] = (split, parsed.against)
    with ExitStack() as stack:
        targets = {name: _start(graph, *form, stack) for name, form in forms.items()}
        names = list(targets)
        for images, taken in slices.items():
            for target in targets.values():
                _load(target, images, parsed.connections, WARM_UP_SECONDS, graph)
            for index in range(parsed.slices):
                first = (number + index) % len(names)
                samples = {
                    name: _load(targets[name], images, parsed.connections, parsed.seconds, graph)
                    for name in (*names[first:], *names[:first])
                }
                figures = ", ".join(f"{name} {samples[name].whole:.1f} us" for name in names)
                say(
                    f"round {number + 1} of {parsed.rounds}, {images} images, "
                    f"slice {index + 1} of {parsed.slices}: {figures}"
                )
                taken.append(samples)


def _start(graph: Path, flags: Sequence[str], directory: Path, stack: ExitStack) -> _Target:
    port, image = free_port(), images_of(1)
    models_dir = graph.parents[2]
    command = [sys.executable, "-m", "service", "--port", str(port), "--models-dir", str(models_dir), *flags]
    expected = right_answer(graph, image)
    server = serving(
        command, lambda: agrees(port, PATH, RAW, image, expected), directory=directory, environment={}
    )
    return _Target(stack.enter_context(server), port)


def _load(target: _Target, images: int, connections: int, seconds: float, graph: Path) -> Sample:
    """Load one service. Raises ServerFailed unless every response is 200."""
    url = f"http://127.0.0.1:{target.port}{PATH}"
    headers = {"Content-Type": OCTETS, "Accept": OCTETS}
    before, counted, faults = _cpu_seconds(target.server), counts(target.port), target.server.page_faults()
    load = wrk.post(url, images_of(images).tobytes(), headers, connections=connections, seconds=seconds)
    after, seen = _cpu_seconds(target.server), counts(target.port)
    faults = target.server.page_faults() - faults
    if load.errors or not load.requests:
        raise ServerFailed(f"{load.errors} requests failed, {load.requests} were answered with 200")
    used = {role: 1e6 * (after[role] - before[role]) / load.requests for role in after}
    batches, rows = (seen[index] - counted[index] for index in (0, 1))
    batch_rows = rows / batches
    model = 1e6 * _model_seconds(graph, round(batch_rows)) * images / batch_rows
    return Sample(
        sum(used.values()),
        used["engine"],
        used["worker"],
        model,
        batch_rows,
        load.requests / load.seconds,
        1e3 * load.p99_seconds,
        faults / load.requests,
    )


def _cpu_seconds(server: Server) -> dict[str, float]:
    """User and system time so far by role; a service of one process is `other`."""
    used = dict.fromkeys(("engine", "worker", "other"), 0.0)
    for process in server.processes():
        words = process.cmdline()
        role = next((role for role in ("engine", "worker") if role in words[:4]), "other")
        used[role] += sum(process.cpu_times()[:2])
    return used


def counts(port: int) -> tuple[float, float]:
    """Batches and rows so far."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    families = ("inkserve_batches_total", "inkserve_rows_total")
    batches, rows = (
        sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))
        for name in families
    )
    return batches, rows


def _model_seconds(graph: Path, rows: int) -> float:
    """Return how long the graph takes for a batch, with one thread: the median of some runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    images = np.zeros((max(1, rows), 28, 28), np.uint8)
    seconds = []
    for _ in range(MODEL_RUNS):
        started = time.perf_counter()
        session.run(None, {"images": images})
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def report(slices: Mapping[int, Sequence[Slice]], workers: int, connections: int) -> str:
    """Markdown: medians of the slices, which are by the images of a request."""
    about = describe()
    lines = [
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}; {about['cpu']}, "
        f"{about['cores']} cores shared with wrk; {workers} workers, {connections} connections; CPU time per "
        f"request in us, medians of {min(map(len, slices.values()))} slices.",
        "",
        "| images | service | all | workers | engine | the model's own | engine beyond it | rows a batch "
        "| requests/s | p99 ms | page faults |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for images, taken in slices.items():
        for name in taken[0]:
            samples = [each[name] for each in taken]
            medians = [statistics.median(getattr(sample, field) for sample in samples) for field in FIELDS]
            lines.append(f"| {' | '.join([str(images), name, *(f'{each:.1f}' for each in medians)])} |")
    for images, taken in slices.items():
        ratio = statistics.median(
            each["split"].workers / (each["one process"].whole - each["one process"].model) for each in taken
        )
        lines.append(
            f"\nWith {images} images, the workers use {ratio:.2f} times what one process uses beyond the "
            "model's own time."
        )
    return "\n".join(lines)


FIELDS = (
    "whole",
    "workers",
    "engine",
    "model",
    "engine_beyond_model",
    "batch_rows",
    "requests_per_second",
    "p99_ms",
    "page_faults",
)


if __name__ == "__main__":
    sys.exit(exit_code(main))
