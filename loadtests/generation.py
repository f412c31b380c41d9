"""The command `python -m loadtests.generation`: what /generate delivers of what the engine alone could.

    python -m loadtests.generation
    python -m loadtests.generation --model vae --against ../inkserve-before

wrk asks for raw images. Each round starts the service, loads it with large requests and with single images,
each request with another seed, and times the same model's batches in a process without a service, before and
after. What the service delivers is compared with the best batch size of its own round. The large requests
must reach `BAR` of it. On a busy machine compare the CPU times: other work changes them least.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from loadtests import wrk
from loadtests.arguments import at_least_one, checkout
from loadtests.interrupts import exit_code
from loadtests.machine import ROOT, describe
from loadtests.peers.wire import OCTETS
from loadtests.processes import Server, ServerFailed, end_servers_on_sigterm, free_port, serving
from loadtests.progress import say
from loadtests.split_cost import counts
from service.content.latents import draw_latents
from service.models.folder import latest_version, read_info
from service.models.manifest import MODEL_FILE
from service.models.tensors import Array
from service.onnx.engine import Engine
from service.serving.tuning import engine_options
from service.settings import Settings

BAR = 0.5
"""What `count=64` must reach of the engine's own images per second."""

WARM_UP_SECONDS = 3.0


@dataclass(frozen=True)
class Scenario:
    """A load: images per request, and connections that each have one request in flight."""

    count: int
    connections: int

    def __str__(self) -> str:
        return f"{self.count} per request, {self.connections} connections"


LARGE, SMALL = Scenario(64, 32), Scenario(1, 64)


@dataclass(frozen=True)
class Sample:
    """One service under one load, and the engine alone in the same round.

    cpu_us: CPU time per image, of all of the service's processes.
    """

    images_per_second: float
    engine: float
    cpu_us: float
    engine_cpu_us: float
    batch_rows: float
    p99_ms: float

    @property
    def reached(self) -> float:
        """The fraction of the engine's own images per second."""
        return self.images_per_second / self.engine


Round = Mapping[tuple[str, Scenario], Sample]
"""By the service's name and the load."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if the bar is missed, or nothing could be measured."""
    parsed = _parser().parse_args(arguments)
    if parsed.engine_only:
        print(json.dumps(engine_rates(parsed.model, parsed.provider, parsed.seconds)))
        return 0
    if wrk.is_missing():
        return 1
    end_servers_on_sigterm()
    try:
        rounds = [_round(number, parsed) for number in range(parsed.rounds)]
    except ServerFailed as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 1
    print(report(rounds, parsed.model))
    return 0 if reached(rounds) >= BAR else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=at_least_one, default=3, help="times to start every service (default: 3)")
    add("--seconds", type=at_least_one, default=5, help="whole seconds per load (default: 5)")
    add("--model", default="gan", help="the generator (default: gan)")
    add("--provider", choices=("cpu", "cuda"), default="cpu", help="of all services (default: cpu)")
    add(
        "--against",
        type=checkout,
        metavar="DIR",
        help="another checkout of this project, run beside this one",
    )
    add("--engine-only", action="store_true", help="print the engine's images/s by batch size, as JSON")
    return parser


def _round(number: int, parsed: argparse.Namespace) -> Round:
    """Start every service, load each in turn, and time the engine before and after. Raises ServerFailed."""
    checkouts = {"this checkout": ROOT}
    if parsed.against is not None:
        checkouts["the other checkout"] = parsed.against
    names = list(checkouts)
    names = [*names[number % len(names) :], *names[: number % len(names)]]
    alone = [_engine_alone(parsed)]
    seen: dict[tuple[str, Scenario], Sample] = {}
    for name in names:
        with ExitStack() as stack:
            port = free_port()
            command = [sys.executable, "-m", "service", "--port", str(port), "--provider", parsed.provider]
            ready = _Ready(port, parsed.model)
            server = stack.enter_context(serving(command, ready, directory=checkouts[name], environment={}))
            for load in (LARGE, SMALL):
                _load(server, port, parsed.model, load, WARM_UP_SECONDS)
                seen[name, load] = _load(server, port, parsed.model, load, parsed.seconds)
    alone.append(_engine_alone(parsed))
    best, cpu_us = (statistics.mean(figures) for figures in zip(*alone, strict=True))
    finished = {key: replace(sample, engine=best, engine_cpu_us=cpu_us) for key, sample in seen.items()}
    large = finished[names[0], LARGE]
    say(f"round {number + 1} of {parsed.rounds}: {large.reached:.2f} of {best:,.0f} images/s ({names[0]})")
    return finished


@dataclass(frozen=True)
class _Ready:
    """Whether the service draws an image."""

    port: int
    model: str

    def __call__(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"/generate?model={self.model}", headers={"Accept": OCTETS})
            response = connection.getresponse()
            return response.status == 200 and len(response.read()) == 28 * 28
        finally:
            connection.close()


def _load(server: Server, port: int, model: str, load: Scenario, seconds: float) -> Sample:
    """Load the service. Raises ServerFailed unless every response is 200."""
    url = f"http://127.0.0.1:{port}/generate?model={model}&count={load.count}"
    before, worked = counts(port), server.cpu_seconds()
    answered = wrk.post(
        url, b"", {"Accept": OCTETS}, connections=load.connections, seconds=seconds, seeded=True
    )
    after, worked = counts(port), server.cpu_seconds() - worked
    if answered.errors or not answered.requests:
        raise ServerFailed(f"{answered.errors} requests failed, {answered.requests} were answered with 200")
    batches, rows = (after[index] - before[index] for index in (0, 1))
    rate = load.count * answered.requests / answered.seconds
    # Of all rows that ran, also of the requests that were in flight at the end.
    return Sample(rate, 0.0, 1e6 * worked / rows, 0.0, rows / batches, 1e3 * answered.p99_seconds)


def _engine_alone(parsed: argparse.Namespace) -> tuple[float, float]:
    """Return the engine's images per second and CPU us per image at its best batch size.

    It runs in a process of its own.
    """
    command = [sys.executable, "-m", "loadtests.generation", "--engine-only"]
    command += ["--model", parsed.model, "--provider", parsed.provider, "--seconds", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    rates: dict[str, tuple[float, float]] = json.loads(run.stdout)
    best, cpu_us = max(rates.values())
    return best, cpu_us


def engine_rates(model: str, provider: str, seconds: float) -> dict[int, tuple[float, float]]:
    """Return the engine's images per second and CPU us per image by batch size: powers of two, the largest.

    The threads are the service's; the seconds are for each size. Nothing else runs in this process.
    """
    settings = Settings.model_validate(
        {"models_dir": ROOT / "models", "provider": provider, "determinism": "off"}
    )
    folder = latest_version(ROOT / "models" / model)
    manifest = read_info(folder).manifest
    engine = Engine(folder / MODEL_FILE, manifest, engine_options(settings, manifest))
    engine.warm_up()
    spec = manifest.input("z")
    assert spec is not None  # it is a generator
    most = engine.buckets[-1]
    z = draw_latents(0, most, spec.shape[1])
    label = np.arange(most) % max(1, len(manifest.labels))
    every: dict[str, Array] = {"z": z, "label": label}
    inputs = tuple(every[each.name] for each in manifest.inputs)
    sizes = [size for size in engine.buckets if size.bit_count() == 1 or size == most]
    return {size: _rate(engine, tuple(each[:size] for each in inputs), size, seconds) for size in sizes}


def _rate(engine: Engine, inputs: tuple[Array, ...], rows: int, seconds: float) -> tuple[float, float]:
    started, worked, batches = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        engine.run([inputs], rows)
        batches += 1
    images = batches * rows
    return images / (time.perf_counter() - started), 1e6 * (time.process_time() - worked) / images


def reached(rounds: Sequence[Round]) -> float:
    """Return what this checkout reaches with large requests of the engine's own rate: the rounds' median."""
    return statistics.median(each["this checkout", LARGE].reached for each in rounds)


def report(rounds: Sequence[Round], model: str) -> str:
    """Markdown: medians of the rounds."""
    about = describe()
    lines = [
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}; {about['cpu']}, "
        f"{about['cores']} cores shared with wrk; {model}; medians of {len(rounds)} rounds, lowest to "
        "highest in brackets.",
        "",
        "| service | images | images/s | of the engine's own | CPU us per image | the engine's own "
        "| rows a batch | p99 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, load in rounds[0]:
        samples = [each[name, load] for each in rounds]
        rate = _figure([sample.images_per_second for sample in samples], ",.0f")
        share = _figure([sample.reached for sample in samples], ".2f")
        cells = [
            f"{statistics.median(getattr(sample, field) for sample in samples):{form}}"
            for field, form in FIELDS.items()
        ]
        lines.append(f"| {name} | {load} | {rate} | {share} | {' | '.join(cells)} |")
    lines.append(f"\n{LARGE}: {reached(rounds):.2f} of the engine's own images/s, expected {BAR} or more.")
    return "\n".join(lines)


FIELDS = {"cpu_us": ".0f", "engine_cpu_us": ".0f", "batch_rows": ".1f", "p99_ms": ".1f"}


def _figure(values: Sequence[float], form: str) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    sys.exit(exit_code(main))
