"""Check the engine on a GPU against the CPU, model by model and bucket by bucket, and time both.

    python -m loadtests.gpu --provider cuda

Needs numpy, pydantic, pydantic-settings and onnxruntime-gpu, and no network. `--provider cpu` runs all of it
but CUDA itself. Exits with 1 where an answer was wrong; docs/gpu.md tells more.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from loadtests.interrupts import exit_code
from loadtests.machine import RESULTS, ROOT, cores, describe
from loadtests.outputs import REPORTS, shown, write_text
from loadtests.progress import doing, say
from service.errors import InkserveError
from service.models.folder import latest_version, model_folders
from service.models.manifest import MODEL_FILE, Manifest, TensorSpec, read_manifest
from service.models.tensors import dtype_of
from service.onnx.engine import Engine, bucket_sizes
from service.onnx.session import EngineOptions
from service.settings import Provider

Array = NDArray[Any]
Arrays = tuple[Array, ...]

FIXED_BATCH_SIZE = 16
LEAST_RUNS = 5
UNDER_WAY_TURNS = 20


@dataclass(frozen=True)
class Timing:
    """One bucket. seconds: the median run, with the copies to the device and back, one at a time.

    seconds_with_two_under_way: from one batch's end to the next one's, where copies overlap with compute.
    """

    rows: int
    runs: int
    seconds: float
    seconds_with_two_under_way: float | None
    seconds_without_overlap: float | None
    seconds_without_cuda_graphs: float | None
    seconds_without_pinned_memory: float | None
    cpu_seconds: float
    error: float


@dataclass(frozen=True)
class Report:
    """One model. device_bytes: what the whole device held before it and with it, None without nvidia-smi."""

    model: str
    tolerance: dict[str, float]
    device_bytes: tuple[int | None, int | None]
    problems: list[str]
    timings: list[Timing]


def check(folder: Path, options: EngineOptions, threads: int, seconds: float) -> Report:
    """Check and time one model version. Raises InkserveError where it cannot be loaded or run."""
    manifest, graph = read_manifest(folder), folder / MODEL_FILE
    allowed = {spec.name: tolerance(spec, graph, options.provider) for spec in manifest.outputs}
    before = device_bytes(options.device_id)
    engine = Engine(graph, manifest, options)  # cold: the first run of a bucket is the one that captures
    with_model = before, device_bytes(options.device_id)
    reference = Engine(graph, manifest, EngineOptions("cpu", 0, threads, options.buckets))
    plain = Engine(graph, manifest, replace(options, cuda_graphs=False)) if has_cuda_graphs(options) else None
    pageable = Engine(graph, manifest, replace(options, pinned_memory=False)) if options.pins_memory else None
    blocking = Engine(graph, manifest, replace(options, overlap_copies=False)) if options.overlaps else None
    some, others = (make_inputs(manifest, options.buckets[-1], seed) for seed in (0, 1))
    problems = list(fixed_bucket_problems(graph, manifest, options, some))
    largest = run(engine, some)
    timings = []
    for rows in options.buckets:
        first, second = head(some, rows), head(others, rows)
        answers = run(engine, first), run(engine, second), run(engine, first)
        expected = run(reference, first), run(reference, second)
        errors = {
            spec.name: max(
                distance(answers[0][i], expected[0][i]),
                distance(answers[1][i], expected[1][i]),
                distance(answers[0][i], largest[i][:rows]),
            )
            for i, spec in enumerate(manifest.outputs)
        }
        found = [f"{name}: off by {error:.2g}" for name, error in errors.items() if error > allowed[name]]
        if not same(answers[0], answers[2]):
            found.append("a repeat, which replays the CUDA graph, gives other bits than the first run")
        if same(answers[0], answers[1]):
            found.append("other inputs give the same outputs: a buffer is stale")
        found += under_way_problems(engine, (first, second), answers)
        problems += [f"batch of {rows}: {problem}" for problem in found]
        runs, median = timed(engine, first, seconds)
        timings.append(
            Timing(
                rows,
                runs,
                median,
                timed_under_way(engine, first, seconds) if engine.depth > 1 else None,
                timed(blocking, first, seconds)[1] if blocking else None,
                timed(plain, first, seconds)[1] if plain else None,
                timed(pageable, first, seconds)[1] if pageable else None,
                timed(reference, first, seconds)[1],
                max(errors.values()),
            )
        )
    return Report(f"{manifest.name}/{manifest.version}", allowed, with_model, problems, timings)


def fixed_bucket_problems(
    graph: Path, manifest: Manifest, options: EngineOptions, inputs: Arrays
) -> Iterator[str]:
    """In one fixed bucket, as deterministic models have, a row's bits depend on neither place nor company."""
    engine = Engine(graph, manifest, replace(options, buckets=(FIXED_BATCH_SIZE,)))
    rows = min(FIXED_BATCH_SIZE, len(inputs[0]))
    together = run(engine, head(inputs, rows))
    for row in range(rows):
        alone = run(engine, tuple(array[row : row + 1] for array in inputs))
        if not same(alone, tuple(output[row : row + 1] for output in together)):
            yield f"fixed batch of {FIXED_BATCH_SIZE}: row {row} has other bits alone than among others"


def under_way_problems(
    engine: Engine, inputs: tuple[Arrays, Arrays], alone: Sequence[Arrays]
) -> Iterator[str]:
    """As many batches under way as may be: each must have the bits that it has alone.

    One input fills every set of buffers before the other does, so that each set holds the other one's rows
    before: in turns each set would keep to one input, and bytes copied too early would be the right ones.
    """

    def which(number: int) -> int:
        return number // engine.depth % 2

    under_way: deque[Callable[[], Arrays]] = deque()
    ended = 0
    while ended < UNDER_WAY_TURNS:
        while len(under_way) < engine.depth and ended + len(under_way) < UNDER_WAY_TURNS:
            batch = inputs[which(ended + len(under_way))]
            under_way.append(engine.begin([batch], len(batch[0])))
        if not same(under_way.popleft()(), alone[which(ended)]):
            yield f"with {engine.depth} batches under way, number {ended} has other bits than alone"
        ended += 1


def has_cuda_graphs(options: EngineOptions) -> bool:
    return options.provider == "cuda" and options.cuda_graphs


def tolerance(spec: TensorSpec, graph: Path, provider: Provider) -> float:
    """How far an output may be from the CPU's: grey levels, or relative to max(1, its size).

    float32 sums in another order differ by some 1e-6 a layer: 1e-4 leaves room for a network, and at the edge
    between two grey levels it makes one level. TensorRT takes TF32, whose products are good to 5e-4. A
    quantized activation that falls on the other side of an edge moves by a whole step, 1/255 of its range,
    and the CPU adds up int32 where the GPU adds up float32.
    """
    if np.issubdtype(dtype_of(spec), np.integer):
        return 3 if provider == "tensorrt" else 1
    if b"QuantizeLinear" in graph.read_bytes():
        return 5e-2
    return 2e-2 if provider == "tensorrt" else 1e-4


def distance(answer: Array, expected: Array) -> float:
    """The largest difference, as `tolerance` counts it; infinite where a value is not finite."""
    left, right = answer.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(left).all():
        return float("inf")
    scale = 1.0 if np.issubdtype(expected.dtype, np.integer) else np.maximum(1.0, np.abs(right))
    return float((np.abs(left - right) / scale).max())


def same(left: Arrays, right: Arrays) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


def make_inputs(manifest: Manifest, rows: int, seed: int) -> Arrays:
    """Ten real digits and then noise for images, normals for z, every label in turn."""
    rng = np.random.default_rng(seed)
    digits = np.fromfile(ROOT / "tests" / "digits" / "digits.raw", np.uint8).reshape(10, 28, 28)

    def make(spec: TensorSpec) -> Array:
        shape = (rows, *spec.shape[1:])
        if spec.datatype == "INT64":
            return (np.arange(rows, dtype=np.int64) + seed) % len(manifest.labels)
        if spec.datatype == "FP32":
            return rng.standard_normal(shape).astype(np.float32)
        images = rng.integers(0, 256, shape, dtype_of(spec))
        if spec.shape[1:] == digits.shape[1:]:
            images[:10] = np.roll(digits, seed, axis=0)[:rows]
        return images

    return tuple(make(spec) for spec in manifest.inputs)


def head(arrays: Arrays, rows: int) -> Arrays:
    return tuple(array[:rows] for array in arrays)


def run(engine: Engine, inputs: Arrays) -> Arrays:
    return engine.run([inputs], len(inputs[0]))


def timed(engine: Engine, inputs: Arrays, seconds: float) -> tuple[int, float]:
    """(runs, the median run's seconds), for about so many seconds; the first run is not counted."""
    run(engine, inputs)
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while len(taken) < LEAST_RUNS or time.perf_counter() < ends:
        started = time.perf_counter()
        run(engine, inputs)
        taken.append(time.perf_counter() - started)
    return len(taken), statistics.median(taken)


def timed_under_way(engine: Engine, inputs: Arrays, seconds: float) -> float:
    """Seconds a batch, for about so many seconds, with as many under way as may be."""
    rows = len(inputs[0])
    under_way = deque(engine.begin([inputs], rows) for _ in range(engine.depth - 1))
    batches, started = 0, time.perf_counter()
    while batches < LEAST_RUNS or time.perf_counter() < started + seconds:
        under_way.append(engine.begin([inputs], rows))
        under_way.popleft()()
        batches += 1
    taken = time.perf_counter() - started
    for end in under_way:
        end()
    return taken / batches


def ask_device(device_id: int, *fields: str) -> list[str] | None:
    """What nvidia-smi says of a GPU; None where there is no nvidia-smi, or no such GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={device_id}"]
    ended = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=False)
    return [part.strip() for part in ended.stdout.split(",")] if ended.returncode == 0 else None


def device_bytes(device_id: int) -> int | None:
    answer = ask_device(device_id, "memory.used")
    return int(answer[0]) * 2**20 if answer and answer[0].isdecimal() else None


def table(reports: list[Report]) -> str:
    """Markdown. images/s and the factor count the whole path: to the device, compute, and back.

    images/s with two batches under way, where there may be two; the factor with one at a time.
    """
    lines = [
        "| model | batch | µs | two under way, µs a batch | without overlap, µs | without CUDA graphs, µs "
        "| without pinned memory, µs | images/s | CPU, µs | times the CPU | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        for timing in report.timings:
            cells = [
                report.model,
                str(timing.rows),
                microseconds(timing.seconds),
                microseconds(timing.seconds_with_two_under_way),
                microseconds(timing.seconds_without_overlap),
                microseconds(timing.seconds_without_cuda_graphs),
                microseconds(timing.seconds_without_pinned_memory),
                f"{timing.rows / (timing.seconds_with_two_under_way or timing.seconds):,.0f}",
                microseconds(timing.cpu_seconds),
                f"{timing.cpu_seconds / timing.seconds:.2f}",
                f"{timing.error:.1g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.0f}"


def output_of(chosen: argparse.Namespace) -> Path:
    """The published file if every shipped model is checked with the defaults, otherwise one in reports/."""
    if chosen.out is not None:
        return Path(chosen.out)
    published = RESULTS / ("gpu.json" if chosen.provider == "cuda" else f"gpu_{chosen.provider}.json")
    defaults = vars(parse([]))
    free = {"provider", "device_id", "threads", "seconds", "out", "publish"}
    same = all(getattr(chosen, name) == value for name, value in defaults.items() if name not in free)
    full = same and chosen.seconds >= defaults["seconds"]
    return published if full or chosen.publish else REPORTS / published.name


def split_wheel(wheel: Path, into: Path, part_bytes: int) -> list[Path]:
    """Cut a file into parts that `cat` joins again, for machines that take small files only."""
    into.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    with wheel.open("rb") as file:
        while piece := file.read(part_bytes):
            parts.append(into / f"{wheel.name}.part{len(parts):03d}")
            parts[-1].write_bytes(piece)
    return parts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.gpu", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--provider", choices=get_args(Provider), default="cuda", help="execution provider (default: cuda)")
    add("--device-id", type=int, default=0, help="index of the GPU (default: 0)")
    add("--models-dir", type=Path, default=ROOT / "models", help="folder of models (default: models/)")
    add("--only", nargs="*", metavar="NAME", help="models to check (default: all)")
    add("--max-batch-size", type=int, default=256, help="rows in the largest bucket (default: 256)")
    add("--no-cuda-graphs", dest="cuda_graphs", action="store_false", help="capture no CUDA graphs")
    add("--no-pinned-memory", dest="pinned_memory", action="store_false", help="pin no host memory")
    add("--no-overlap-copies", dest="overlap_copies", action="store_false", help="run one batch at a time")
    add("--threads", type=int, default=cores(), help="threads of the CPU's session (default: all cores)")
    add("--seconds", type=float, default=0.3, help="seconds of timing per bucket and engine (default: 0.3)")
    add(
        "--out",
        type=Path,
        help="JSON file to write (default: loadtests/results/gpu.json, or gpu_<provider>.json, for every "
        "model with the defaults, otherwise the same name in reports/)",
    )
    add("--publish", action="store_true", help="write to loadtests/results/, whatever the options")
    add("--split-wheel", type=Path, metavar="FILE", help="only cut FILE into parts")
    add(
        "--into", type=Path, default=Path("parts"), metavar="DIR", help="folder of the parts (default: parts)"
    )
    add("--part-mb", type=int, default=40, help="megabytes per part (default: 40)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 for wrong answers, 2 where nothing could be checked."""
    chosen = parse(arguments)
    if chosen.split_wheel:
        split_wheel(chosen.split_wheel, chosen.into, chosen.part_mb * 10**6)
        print(f"cat {chosen.into}/{chosen.split_wheel.name}.part* > {chosen.split_wheel.name}")
        return 0
    buckets = bucket_sizes(chosen.max_batch_size)
    options = EngineOptions(
        chosen.provider,
        chosen.device_id,
        chosen.threads,
        buckets,
        chosen.cuda_graphs,
        pinned_memory=chosen.pinned_memory,
        overlap_copies=chosen.overlap_copies,
    )
    names = chosen.only or [model.name for model in model_folders(chosen.models_dir)]
    out = output_of(chosen)
    started = describe(("numpy",))
    reports = []
    for name in names:
        try:
            folder = latest_version(chosen.models_dir / name)
            with doing(f"{name}/{folder.name}"):
                report = check(folder, options, chosen.threads, chosen.seconds)
        except InkserveError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        reports.append(report)
        say(f"{report.model}: {len(report.timings)} buckets, {len(report.problems)} problems")
    device = ask_device(chosen.device_id, "name", "driver_version", "memory.total") or []
    result = started | {
        "onnxruntime": ort.__version__,
        "provider": chosen.provider,
        "cuda_graphs": has_cuda_graphs(options),
        "pinned_memory": options.pins_memory,
        "overlap_copies": options.overlaps,
        "cpu_threads": chosen.threads,
        "device": dict(zip(("name", "driver", "memory_mib"), device, strict=False)) or None,
        "models": [asdict(report) for report in reports],
    }
    write_text(out, json.dumps(result, indent=1) + "\n")
    print(table(reports))
    say(f"written: {shown(out)}")
    problems = [f"{report.model}: {problem}" for report in reports for problem in report.problems]
    print("\n".join(problems) or "every answer agrees", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
