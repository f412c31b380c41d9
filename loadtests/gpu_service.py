"""The command `python -m loadtests.gpu_service`: the service on a GPU, in all its forms, loaded by wrk.

    python -m loadtests.gpu_service
    python -m loadtests.gpu_service --provider cpu --workers 2 --services 1 2 --seconds 1

One process, the split form with several workers, and several whole services side by side on the one device;
onnxruntime alone, a hand-written batcher and NVIDIA's Triton (pytriton) for comparison. Each figure comes
from a server that first gave the right answer. Prints a table and the targets, and writes JSON. Exits with 1
if a service failed; a missed target is no error, nor is a peer that does not run: its row has the reason.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from loadtests import wrk
from loadtests.arguments import at_least_one
from loadtests.gpu import ask_device, describe_device, make_inputs, run, timed, timed_in_flight
from loadtests.interrupts import exit_code
from loadtests.machine import RESULTS, ROOT, cores, describe
from loadtests.outputs import add_output_arguments, chosen_output, shown, write_text
from loadtests.peers.contestants import BATCHER, PYTRITON, Contestant, NotInstalled, newest_graph
from loadtests.peers.measure import images_of, right_answer
from loadtests.peers.on_provider import serving_on
from loadtests.peers.wire import OCTETS, RAW, Wire, agrees
from loadtests.processes import ServerFailed, end_servers_on_sigterm
from loadtests.progress import doing, say
from loadtests.service_process import NotStarted, serving
from service.models.folder import latest_version
from service.models.manifest import MODEL_FILE, read_manifest
from service.onnx.engine import Engine
from service.onnx.session import EngineOptions
from service.settings import Provider

PUBLISHED = RESULTS / "gpu_service.json"
RAW_BOTH = {"Content-Type": OCTETS, "Accept": OCTETS}
WARM_UP_SECONDS = 1.0
LARGE = 1024


@dataclass(frozen=True)
class Load:
    """What every request of a slice asks for. rows: images of one request."""

    name: str
    model: str
    path: str
    body: bytes
    headers: dict[str, str]
    rows: int
    connections: int


@dataclass(frozen=True)
class Figure:
    """What was measured. form: how the service ran. gpu_percent: the GPU's utilisation, None without one."""

    form: str
    load: str
    requests_per_second: float
    images_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    gpu_percent: float | None


@dataclass(frozen=True)
class Missing:
    """A peer, or its remaining loads, without figures. form: as in `Figure`."""

    form: str
    reason: str


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def raw(model: str, rows: int, connections: int) -> Load:
    """Raw images in, raw probabilities out."""
    name = f"{model}, {counted(rows, 'image')}, {counted(connections, 'connection')}"
    body = images_of(rows).tobytes()
    return Load(name, model, f"/classify?model={model}", body, RAW_BOTH, rows, connections)


def png(connections: int) -> Load:
    """A digit's picture of 28x28 pixels to mlp."""
    body = (ROOT / "tests" / "digits" / "7.png").read_bytes()
    headers = {"Content-Type": "image/png", "Accept": OCTETS}
    return Load(
        f"mlp, PNG, {connections} connections", "mlp", "/classify?model=mlp", body, headers, 1, connections
    )


def generated(count: int, connections: int) -> Load:
    """Raw images of gan, without a seed: identical seeded requests would be computed once."""
    name = f"gan, {count} images a request, {connections} connections"
    path = f"/generate?model=gan&count={count}"
    return Load(name, "gan", path, b"", {"Accept": OCTETS}, count, connections)


SINGLE, SIXTEEN, MANY = raw("mlp", 1, 512), raw("mlp", 16, 256), raw("mlp", 256, 64)
IN_ONE_PROCESS = (
    raw("mlp", 1, 1),
    raw("mlp", 1, 64),
    SINGLE,
    raw("mlp", 64, 32),
    raw("mlp", 256, 16),
    raw("cnn", 1, 256),
    raw("cnn", 256, 16),
    generated(16, 32),
    generated(64, 32),
)
WHOLE = raw("mlp", LARGE, 16)
LARGE_BATCHES = (WHOLE, raw("cnn", LARGE, 16))
IN_THE_SPLIT_FORM = (SINGLE, SIXTEEN, MANY, png(128), generated(64, 32))
SIDE_BY_SIDE = raw("mlp", 1, 64)
OF_PEERS = (raw("mlp", 1, 64), raw("mlp", 256, 16))

PEERS = {"a batcher by hand": BATCHER, "pytriton": PYTRITON}
"""The peers by form. Both take bodies of 256 images, which is their largest batch (`peers/session.py`)."""


class Meter:
    """The GPU's utilisation, asked of nvidia-smi every second while the block runs; None without one."""

    def __init__(self, device_id: int) -> None:
        self._device_id = device_id
        self._seen: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def mean(self) -> float | None:
        """Return the mean utilisation in per cent."""
        return sum(self._seen) / len(self._seen) if self._seen else None

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            answer = ask_device(self._device_id, "utilization.gpu")
            if answer is None:
                return
            if answer[0].isdecimal():
                self._seen.append(float(answer[0]))


class Bench:
    """The loads of one run. Every method raises NotStarted, ServerFailed or WrkMissing."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen

    def all(self) -> Iterator[Figure]:
        """Measure every form in turn."""
        largest = ["--max-batch-size", str(LARGE), "--max-request-rows", str(4 * LARGE)]
        yield from self._service("one process", [], IN_ONE_PROCESS)
        yield from self._service(f"one process, --max-batch-size {LARGE}", largest, LARGE_BATCHES)
        for count in self._chosen.workers:
            yield from self._service(f"--workers {count}", ["--workers", str(count)], IN_THE_SPLIT_FORM)
        for count in self._chosen.services:
            yield self._side_by_side(count)

    def peers(self) -> Iterator[Figure | Missing]:
        """Measure every peer. One that fails gets a line on stderr, and the next one follows."""
        for form, peer in PEERS.items():
            if peer.name not in self._chosen.peers:
                yield Missing(form, "left out by --peers")
                continue
            if peer is PYTRITON:
                peer = replace(peer, ready_python=self._chosen.peer_python)
            try:
                yield from self._peer(form, peer)
            except (NotInstalled, ServerFailed, OSError, subprocess.SubprocessError) as error:
                say(f"{form}: not measured: {error}")
                yield Missing(form, str(error))

    def _service(self, form: str, flags: Sequence[str], loads: Sequence[Load]) -> Iterator[Figure]:
        with serving([*self._flags(), *flags]) as service:
            for load in loads:
                if load.headers is RAW_BOTH:
                    self._check(service.port, load, RAW)
                yield self._measure(form, load, [service.port])

    def _side_by_side(self, count: int) -> Figure:
        with ExitStack() as stack:
            ports = [stack.enter_context(serving(self._flags())).port for _ in range(count)]
            for port in ports:
                self._check(port, SIDE_BY_SIDE, RAW)
            return self._measure(counted(count, "service"), SIDE_BY_SIDE, ports)

    def _peer(self, form: str, peer: Contestant) -> Iterator[Figure]:
        with doing(form):
            stack = ExitStack()
            port = stack.enter_context(serving_on(self._chosen.provider, peer, self._chosen.models_dir))
        with stack:
            for load in OF_PEERS:
                body, headers = peer.wire.encode(images_of(load.rows))
                asked = replace(load, path=peer.path, body=body, headers=dict(headers))
                self._check(port, asked, peer.wire)
                yield self._measure(form, asked, [port])

    def _flags(self) -> list[str]:
        chosen = self._chosen
        return [
            *("--models-dir", str(chosen.models_dir.resolve())),
            *("--provider", chosen.provider, "--device-id", str(chosen.device_id)),
        ]

    def _check(self, port: int, load: Load, wire: Wire) -> None:
        """Raise ServerFailed unless a load's images get the right answer; wrk counts the statuses of all."""
        images = images_of(load.rows)
        expected = right_answer(newest_graph(self._chosen.models_dir, load.model), images)
        if not agrees(port, load.path, wire, images, expected):
            raise ServerFailed(f"wrong response to {load.name}")

    def _measure(self, form: str, load: Load, ports: Sequence[int]) -> Figure:
        def post(port: int, seconds: float) -> wrk.Load:
            url = f"http://127.0.0.1:{port}{load.path}"
            return wrk.post(
                url,
                load.body,
                load.headers,
                connections=load.connections,
                seconds=seconds,
                threads=self._chosen.wrk_threads if len(ports) == 1 else 1,
            )

        with doing(f"{form}: {load.name}"), ThreadPoolExecutor(len(ports)) as pool:
            list(pool.map(lambda port: post(port, WARM_UP_SECONDS), ports))
            with Meter(self._chosen.device_id) as meter:
                seen = list(pool.map(lambda port: post(port, self._chosen.seconds), ports))
        rate = sum(each.requests / each.seconds for each in seen)
        figure = Figure(
            form,
            load.name,
            round(rate, 1),
            round(load.rows * rate, 1),
            round(1e3 * float(np.median([each.p50_seconds for each in seen])), 3),
            round(1e3 * max(each.p99_seconds for each in seen), 3),
            sum(each.errors for each in seen),
            meter.mean(),
        )
        say(f"{form}: {load.name}: {rate:,.0f} requests/s, {load.rows * rate:,.0f} images/s")
        return figure


def alone(folder: Path, options: EngineOptions, seconds: float) -> float:
    """Images per second of onnxruntime with host copies, at the largest batch size: no HTTP, no queue."""
    manifest = read_manifest(folder)
    engine = Engine(folder / MODEL_FILE, manifest, options)
    rows = options.buckets[-1]
    inputs = make_inputs(manifest, rows, 0)
    run(engine, inputs)
    if engine.depth > 1:
        return rows / timed_in_flight(engine, inputs, seconds)
    return rows / timed(engine, inputs, seconds)[1]


@dataclass(frozen=True)
class Target:
    """What must be reached. value: None if its loads were left out."""

    what: str
    value: float | None
    bound: float


def targets(figures: Sequence[Figure], engine: float) -> list[Target]:
    """The targets of a GPU with 16 cores. engine: see `alone`, of mlp."""

    def images(form: str, load: Load) -> float | None:
        return next(
            (each.images_per_second for each in figures if (each.form, each.load) == (form, load.name)), None
        )

    one, whole = images("one process", SINGLE), images(f"one process, --max-batch-size {LARGE}", WHOLE)
    eight, sixteen, many = (images("--workers 8", load) for load in (SINGLE, SIXTEEN, MANY))
    return [
        Target("single images, 8 workers to one process", eight / one if eight and one else None, 6.0),
        Target("single images/s, 8 workers", eight, 150_000),
        Target("images/s in bodies of 16, 8 workers", sixteen, 1_500_000),
        Target("images/s in bodies of 256, 8 workers", many, 2_200_000),
        Target(f"bodies of {LARGE:,} to onnxruntime alone", whole / engine if whole else None, 0.85),
    ]


def report(
    figures: Sequence[Figure], missing: Sequence[Missing], engine: float, reached: Sequence[Target]
) -> str:
    """The tables, in Markdown."""
    lines = [
        f"onnxruntime alone, mlp, batches of {LARGE:,} with host copies: {engine:,.0f} images/s",
        "",
        "| service | load | requests/s | images/s | p50 / p99, ms | errors | GPU, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in figures:
        busy = "" if each.gpu_percent is None else f"{each.gpu_percent:.0f}"
        lines.append(
            f"| {each.form} | {each.load} | {each.requests_per_second:,.0f} | {each.images_per_second:,.0f} "
            f"| {each.p50_ms:.2f} / {each.p99_ms:.2f} | {each.errors} | {busy} |"
        )
    lines += [
        f"| {each.form} | not measured: {each.reason.replace('|', '/')} | | | | | |" for each in missing
    ]
    lines += ["", "| target, for a GPU with 16 cores | seen | at least | |", "|---|---|---|---|"]
    for target in reached:
        if target.value is not None:
            met = "met" if target.value >= target.bound else "missed"
            lines.append(f"| {target.what} | {target.value:,.2f} | {target.bound:,g} | {met} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.gpu_service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--provider", choices=get_args(Provider), default="cuda", help="execution provider (default: cuda)")
    add("--device-id", type=int, default=0, help="index of the GPU (default: 0)")
    add("--models-dir", type=Path, default=ROOT / "models", help="folder of models (default: models/)")
    add("--workers", type=at_least_one, nargs="*", default=[2, 4, 8], help="split forms (default: 2 4 8)")
    add(
        "--services",
        type=at_least_one,
        nargs="*",
        default=[1, 2, 4, 8],
        help="whole services on the device (default: 1 2 4 8)",
    )
    names = [peer.name for peer in PEERS.values()]
    add("--peers", choices=names, nargs="*", default=names, help=f"peers (default: {' '.join(names)})")
    add(
        "--peer-python",
        type=lambda name: Path(name).absolute(),
        metavar="FILE",
        help="interpreter of a ready environment for pytriton (default: one made with pip)",
    )
    add("--seconds", type=at_least_one, default=3, help="whole seconds per load (default: 3)")
    add("--wrk-threads", type=at_least_one, default=max(1, cores() // 4), help="wrk's threads")
    add_output_arguments(parser, PUBLISHED, what="JSON file to write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a service failed or wrk is missing."""
    chosen = parse(arguments)
    if wrk.is_missing():
        return 1
    end_servers_on_sigterm()
    started = describe(("numpy",))
    options = EngineOptions(chosen.provider, chosen.device_id, cores(), (LARGE,))
    bench = Bench(chosen)
    try:
        engine = alone(latest_version(chosen.models_dir / "mlp"), options, 1.0)
        figures = list(bench.all())
        seen = list(bench.peers())
    except (NotStarted, ServerFailed, wrk.WrkMissing) as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 1
    figures += [each for each in seen if isinstance(each, Figure)]
    missing = [each for each in seen if isinstance(each, Missing)]
    reached = targets(figures, engine)
    full = chosen.provider == "cuda" and chosen.seconds >= 3 and 8 in chosen.workers
    output = chosen_output(chosen, PUBLISHED, full=full)
    content = started | {
        "provider": chosen.provider,
        "device": describe_device(chosen.device_id),
        "engine_images_per_second": round(engine, 1),
        "figures": [asdict(each) for each in figures],
        "missing": [asdict(each) for each in missing],
        "targets": [asdict(each) for each in reached],
    }
    write_text(output, json.dumps(content, indent=1) + "\n")
    print(report(figures, missing, engine, reached))
    say(f"written: {shown(output)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
