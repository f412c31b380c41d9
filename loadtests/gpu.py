"""Compare the engine on a GPU with the CPU, model by model and bucket by bucket, and time both.

    python -m loadtests.gpu --provider cuda

Requires numpy, pydantic, pydantic-settings and onnxruntime-gpu, and no network. `--provider cpu` runs
everything except CUDA itself. Exits with 1 if an answer was wrong; see docs/gpu.md.
"""

import argparse
import json
import math
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
from service.models.precision import is_float16
from service.models.tensors import dtype_of
from service.onnx.comparable import open_comparable
from service.onnx.engine import Engine, bucket_sizes
from service.onnx.equal_bits import CannotCompare, compare_sizes, rows_to_compare
from service.onnx.session import EngineOptions
from service.serving.tuning import COMPARED_PER_OCTAVE
from service.settings import Provider

Array = NDArray[Any]
Arrays = tuple[Array, ...]

FIXED_BATCH_SIZE = 16
LEAST_RUNS = 5
IN_FLIGHT_BATCHES = 20


@dataclass(frozen=True)
class Timing:
    """One bucket. seconds: the median run, one batch at a time, with the copies to the device and back.

    seconds_with_two_in_flight: from the end of one batch to the end of the next, if copies overlap with
    compute.
    """

    rows: int
    runs: int
    seconds: float
    seconds_with_two_in_flight: float | None
    seconds_without_overlap: float | None
    seconds_without_cuda_graphs: float | None
    seconds_without_pinned_memory: float | None
    cpu_seconds: float
    error: float


@dataclass(frozen=True)
class Report:
    """One model. device_bytes: memory in use on the device before and with it, None without nvidia-smi.

    equal_sizes: the batch sizes in which a row has the same bits as in batches of FIXED_BATCH_SIZE rows.
    """

    model: str
    tolerance: dict[str, float]
    equal_sizes: tuple[int, ...]
    device_bytes: tuple[int | None, int | None]
    problems: list[str]
    timings: list[Timing]


def check(folder: Path, options: EngineOptions, threads: int, seconds: float) -> Report:
    """Check and time one model version. Raises InkserveError if it cannot be loaded or run."""
    manifest, graph = read_manifest(folder), folder / MODEL_FILE
    allowed = {spec.name: tolerance(spec, graph, options.provider) for spec in manifest.outputs}
    before = device_bytes(options.device_id)
    engine = Engine(
        graph, manifest, options
    )  # not warmed up: the first run of a bucket captures the CUDA graph
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
        found += in_flight_problems(engine, (first, second), answers)
        problems += [f"batch of {rows}: {problem}" for problem in found]
        runs, median = timed(engine, first, seconds)
        timings.append(
            Timing(
                rows,
                runs,
                median,
                timed_in_flight(engine, first, seconds) if engine.depth > 1 else None,
                timed(blocking, first, seconds)[1] if blocking else None,
                timed(plain, first, seconds)[1] if plain else None,
                timed(pageable, first, seconds)[1] if pageable else None,
                timed(reference, first, seconds)[1],
                max(errors.values()),
            )
        )
    name = f"{manifest.name}/{manifest.version}"
    return Report(name, allowed, equal_sizes(graph, manifest, options), with_model, problems, timings)


def fixed_bucket_problems(
    graph: Path, manifest: Manifest, options: EngineOptions, inputs: Arrays
) -> Iterator[str]:
    """Check that in one fixed bucket a row's bits depend neither on its place nor on the other rows."""
    engine = Engine(graph, manifest, replace(options, buckets=(FIXED_BATCH_SIZE,)))
    rows = min(FIXED_BATCH_SIZE, len(inputs[0]))
    together = run(engine, head(inputs, rows))
    for row in range(rows):
        alone = run(engine, tuple(array[row : row + 1] for array in inputs))
        if not same(alone, tuple(output[row : row + 1] for output in together)):
            yield f"fixed batch of {FIXED_BATCH_SIZE}: row {row} has other bits alone than in a batch"


def equal_sizes(graph: Path, manifest: Manifest, options: EngineOptions) -> tuple[int, ...]:
    """The batch sizes in which every row has the bits of the fixed size; empty if not even that has them."""
    values = sum(math.prod(spec.shape[1:]) for spec in manifest.outputs)
    sizes = bucket_sizes(options.buckets[-1], COMPARED_PER_OCTAVE)
    others = [size for size in sizes if size != FIXED_BATCH_SIZE]
    inputs = make_inputs(manifest, rows_to_compare(max(*others, FIXED_BATCH_SIZE), values), 0)
    outputs = open_comparable(graph, manifest, options)
    try:
        compared = compare_sizes(outputs, inputs, FIXED_BATCH_SIZE, others, values, math.inf)
    except CannotCompare:
        return ()
    return tuple(sorted(compared.equal))


def in_flight_problems(
    engine: Engine, inputs: tuple[Arrays, Arrays], alone: Sequence[Arrays]
) -> Iterator[str]:
    """Check that each of `depth` batches in flight has the bits that it has alone.

    One input fills every set of buffers before the other input does, so that each set holds the other input's
    rows beforehand. If the inputs alternated, each set would always hold the same input, and bytes copied too
    early would be the correct ones.
    """

    def which(number: int) -> int:
        return number // engine.depth % 2

    in_flight: deque[Callable[[], Arrays]] = deque()
    ended = 0
    while ended < IN_FLIGHT_BATCHES:
        while len(in_flight) < engine.depth and ended + len(in_flight) < IN_FLIGHT_BATCHES:
            batch = inputs[which(ended + len(in_flight))]
            in_flight.append(engine.begin([batch], len(batch[0])))
        if not same(in_flight.popleft()(), alone[which(ended)]):
            yield f"with {engine.depth} batches in flight, number {ended} has other bits than alone"
        ended += 1


def has_cuda_graphs(options: EngineOptions) -> bool:
    return options.provider == "cuda" and options.cuda_graphs


def tolerance(spec: TensorSpec, graph: Path, provider: Provider) -> float:
    """The largest accepted difference from the CPU's output: grey levels, or relative to max(1, its size).

    float32 sums in another order differ by about 1e-6 per layer: 1e-4 leaves room for a network, and at the
    boundary between two grey levels it makes one level. TensorRT uses TF32, whose products are accurate to
    5e-4. A quantized activation on the other side of a boundary moves by a whole step, 1/255 of its range,
    and the CPU sums int32 where the GPU sums float32. A GPU rounds each tensor of a float16 graph, the CPU
    only its weights: images then differ by up to two levels, scores by up to 0.3 % (`training convert`).
    """
    half = is_float16(graph)
    if np.issubdtype(dtype_of(spec), np.integer):
        return 3 if provider == "tensorrt" else 2 if half else 1
    if b"QuantizeLinear" in graph.read_bytes():
        return 5e-2
    return 2e-2 if half or provider == "tensorrt" else 1e-4


def distance(answer: Array, expected: Array) -> float:
    """The largest difference, in the units of `tolerance`; infinite if a value is not finite."""
    left, right = answer.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(left).all():
        return float("inf")
    scale = 1.0 if np.issubdtype(expected.dtype, np.integer) else np.maximum(1.0, np.abs(right))
    return float((np.abs(left - right) / scale).max())


def same(left: Arrays, right: Arrays) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


def make_inputs(manifest: Manifest, rows: int, seed: int) -> Arrays:
    """Inputs for a model: ten real digits and then noise as images, normals as z, cycling labels."""
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
    """(runs, seconds of the median run), measured for about this many seconds, without the first run."""
    run(engine, inputs)
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while len(taken) < LEAST_RUNS or time.perf_counter() < ends:
        started = time.perf_counter()
        run(engine, inputs)
        taken.append(time.perf_counter() - started)
    return len(taken), statistics.median(taken)


def timed_in_flight(engine: Engine, inputs: Arrays, seconds: float) -> float:
    """Seconds per batch with `depth` batches in flight, measured for about this many seconds."""
    rows = len(inputs[0])
    in_flight = deque(engine.begin([inputs], rows) for _ in range(engine.depth - 1))
    batches, started = 0, time.perf_counter()
    while batches < LEAST_RUNS or time.perf_counter() < started + seconds:
        in_flight.append(engine.begin([inputs], rows))
        in_flight.popleft()()
        batches += 1
    taken = time.perf_counter() - started
    for end in in_flight:
        end()
    return taken / batches


def ask_device(device_id: int, *fields: str) -> list[str] | None:
    """These fields of a GPU from nvidia-smi; None if nvidia-smi or the GPU is missing."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={device_id}"]
    ended = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=False)
    return [part.strip() for part in ended.stdout.split(",")] if ended.returncode == 0 else None


def describe_device(device_id: int) -> dict[str, str] | None:
    """What a report says of a GPU; None without one."""
    answer = ask_device(device_id, "name", "driver_version", "memory.total") or []
    return dict(zip(("name", "driver", "memory_mib"), answer, strict=False)) or None


def device_bytes(device_id: int) -> int | None:
    answer = ask_device(device_id, "memory.used")
    return int(answer[0]) * 2**20 if answer and answer[0].isdecimal() else None


def table(reports: list[Report]) -> str:
    """A table in Markdown. images/s and the factor count the whole path: to the device, compute, and back.

    images/s has two batches in flight if the engine allows it; the factor has one at a time.
    """
    lines = [
        "| model | batch | µs | two in flight, µs per batch | without overlap, µs | without CUDA graphs, µs "
        "| without pinned memory, µs | images/s | CPU, µs | times the CPU | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        for timing in report.timings:
            cells = [
                report.model,
                str(timing.rows),
                microseconds(timing.seconds),
                microseconds(timing.seconds_with_two_in_flight),
                microseconds(timing.seconds_without_overlap),
                microseconds(timing.seconds_without_cuda_graphs),
                microseconds(timing.seconds_without_pinned_memory),
                f"{timing.rows / (timing.seconds_with_two_in_flight or timing.seconds):,.0f}",
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
    """Cut a file into parts that `cat` joins again, for machines that accept only small files."""
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
    """Run the command; return 0, 1 for a wrong answer, 2 if none is wrong but a model was not checked."""
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
    try:
        names = chosen.only or [model.name for model in model_folders(chosen.models_dir)]
    except InkserveError as error:
        print(error, file=sys.stderr)
        return 2
    out = output_of(chosen)
    started = describe(("numpy",))
    reports = []
    unchecked = []
    for name in names:
        try:
            folder = latest_version(chosen.models_dir / name)
            with doing(f"{name}/{folder.name}"):
                report = check(folder, options, chosen.threads, chosen.seconds)
        except InkserveError as error:
            say(f"{name}: not checked: {error}")
            unchecked.append(name)
            continue
        reports.append(report)
        say(f"{report.model}: {len(report.timings)} buckets, {len(report.problems)} problems")
    if not reports:
        return 2
    result = started | {
        "onnxruntime": ort.__version__,
        "provider": chosen.provider,
        "cuda_graphs": has_cuda_graphs(options),
        "pinned_memory": options.pins_memory,
        "overlap_copies": options.overlaps,
        "cpu_threads": chosen.threads,
        "device": describe_device(chosen.device_id),
        "models": [asdict(report) for report in reports],
    }
    write_text(out, json.dumps(result, indent=1) + "\n")
    print(table(reports))
    for report in reports:
        print(f"{report.model}: the bits of {FIXED_BATCH_SIZE} rows in batches of {report.equal_sizes}")
    say(f"written: {shown(out)}")
    problems = [f"{report.model}: {problem}" for report in reports for problem in report.problems]
    print("\n".join(problems) or "every answer agrees", file=sys.stderr)
    if unchecked:
        print(f"not checked: {', '.join(unchecked)}", file=sys.stderr)
    return 1 if problems else 2 if unchecked else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
