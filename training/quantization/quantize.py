"""From a published classifier to its int8 version: calibrated, compared, measured, published.

Works on model.onnx alone. Every layer but the last becomes integer arithmetic: bytes by 7-bit weights,
one scale per output channel, 32-bit sums. Why so, measured on MNIST's 5,000 validation images and on
one AVX2 core (Zen 3), images/s at batch 64 against float32:

- 8-bit weights saturate AVX2's 16-bit sums of two products (255 * 127 * 2 > 32767): the CNN's errors
  rose from 20 to 27. With 7 bits (255 * 64 * 2 < 32768) no sum can, and CPUs with VNNI, whose
  instructions sum in 32 bits, give the same bits.
- Unsigned weights do not saturate either, but are slower: MLP 1.6 and not 2.0 times, CNN 1.2 and not 1.7.
- One scale per tensor cost an error more (CNN, 21) and was at most 3 % faster.
- Minimum and maximum over 500 images did as well as entropy and percentiles (20 or 21 errors all).
- Dynamic quantisation slows the CNN down (0.65 times), and takes its scales from the whole batch, so
  that an answer would depend on its neighbours.
"""

import contextlib
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, sha256_of
from training.data.splits import Dataset, Splits
from training.evaluation.evaluate import Metrics, quantization, spread, verified
from training.export.publish import CARD_FILE, Arrays, Target, run_in_parts, save_graph, staging, strip
from training.runs.run import command_line

SUFFIX = "-int8"
CALIBRATION_IMAGES = 500
ALLOWED_LOSS_POINTS = 0.10

# Between the integer kernels and the same graph computed in float: a float sum that rounds to the other
# side moves a hidden activation by one level of 255. Measured: 0.0025; with saturation 0.06 to 0.7.
PARITY_TOLERANCE = 0.01

LAYERS = ("Conv", "Gemm", "MatMul")
# What may lie between two layers without leaving the integers.
BETWEEN = ("Relu", "MaxPool", "Reshape", "Flatten")
BATCHES = (1, 8, 64, 256)
ROUNDS = 9
ROUND_SECONDS = 0.02


class QuantizationError(Exception):
    """The model was not published; the message says what was seen and what was expected."""


@dataclass(frozen=True)
class Speed:
    """Images per second of CPU time on one thread, as the median of ROUNDS, at one batch size."""

    batch: int
    float32: float
    int8: float


def quantize(
    name: str,
    splits: Splits,
    models_dir: Path,
    version: int | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    allowed_loss_points: float = ALLOWED_LOSS_POINTS,
    force: bool = False,
) -> Path:
    """Publish <name>-int8, of the version of the model that it is made from; returns its folder.

    version: None means the latest. force: replace the int8 version if it is there.
    Raises QuantizationError, ExportError or EvaluationError, and then publishes nothing.
    """
    source = _source(models_dir / name, version)
    manifest = verified(source)
    _check_source(manifest, splits)
    calibration = splits.train.images[spread(len(splits.train), calibration_images)]
    if len(calibration) < calibration_images:
        raise QuantizationError(
            f"{calibration_images} calibration images asked for, {splits.name} has "
            f"{len(calibration)} to train"
        )
    graph = to_int8(_load(source / MODEL_FILE), calibration)
    target = Target(models_dir, manifest.version, force)
    with staging([name + SUFFIX], target) as (staged,):
        save_graph(graph, staged / MODEL_FILE)
        difference = check_integers(staged / MODEL_FILE, splits.validation.images)
        metrics = quantization(staged / MODEL_FILE, source, splits.test)
        _check_loss(metrics, allowed_loss_points)
        made = _manifest(manifest, staged / MODEL_FILE, metrics, splits)
        (staged / MANIFEST_FILE).write_text(made.model_dump_json(indent=2) + "\n")
        speeds = measure_speed(source / MODEL_FILE, staged / MODEL_FILE, splits.validation)
        sizes = [(folder / MODEL_FILE).stat().st_size for folder in (source, staged)]
        facts = _Facts(calibration_images, len(splits.validation), difference, *sizes)
        (staged / CARD_FILE).write_text(_card_text(manifest, made, facts, speeds))
    return models_dir / made.name / staged.name


def to_int8(graph: onnx.ModelProto, calibration: NDArray[np.uint8]) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear nodes, which onnxruntime fuses into integer layers.

    calibration: (n, 28, 28), from whose activations the scales are taken.
    The last layer, which decides between two close classes, stays float32. Raises QuantizationError.
    """
    layers = [node.name for node in graph.graph.node if node.op_type in LAYERS]
    if len(layers) < 2:
        raise QuantizationError(
            f"the graph has {len(layers)} layers ({', '.join(LAYERS)}), expected 2 or more"
        )
    with _quiet_quantizer(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        quantize_static(
            graph,
            path,
            _Reader(graph.graph.input[0].name, calibration),
            op_types_to_quantize=[*LAYERS, *BETWEEN],
            nodes_to_exclude=layers[-1:],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        quantized = onnx.load(path)
    _read_bytes(quantized.graph)
    strip(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


class _Reader:
    """Hands the calibration images to onnxruntime, as a CalibrationDataReader does."""

    def __init__(self, name: str, images: NDArray[np.uint8], rows: int = 50) -> None:
        self._parts: Iterator[Arrays] = iter(
            [{name: images[i : i + rows]} for i in range(0, len(images), rows)]
        )

    def get_next(self) -> Arrays | None:
        return next(self._parts, None)


def _read_bytes(graph: onnx.GraphProto) -> None:
    """Take bytes / 255, quantised with scale 1/255 and zero point 0, for what it is: the bytes.

    Removes Cast, Div and QuantizeLinear between the input and the first layer; a graph that scales its
    input otherwise stays as it is.
    """
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    by_output = {node.output[0]: node for node in graph.node}
    to_levels = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    scale, zero = (values[name] for name in to_levels.input[1:])
    shapes, before = [], by_output.get(to_levels.input[0])
    while before is not None and before.op_type in ("Reshape", "Flatten", "Unsqueeze"):
        shapes.append(before)
        before = by_output.get(before.input[0])
    cast = by_output.get(before.input[0]) if before is not None and before.op_type == "Div" else None
    if before is None or cast is None or cast.op_type != "Cast":
        return
    if values[before.input[1]] != 255 or scale != np.float32(1 / 255) or zero != 0:
        return
    _replace_input(graph, before.output[0], cast.input[0])
    _replace_input(graph, to_levels.output[0], to_levels.input[0])
    for node in (cast, before, to_levels):
        graph.node.remove(node)


def _replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def check_integers(path: Path, images: NDArray[np.uint8]) -> float:
    """Compare the integer layers with the same graph computed in float, which cannot saturate.

    Returns the largest difference of any probability. Raises QuantizationError.
    """
    integer, floating = (
        run_in_parts(_session(path, optimised), ["probabilities"], {"images": images})[0]
        for optimised in (True, False)
    )
    difference = float(np.abs(integer - floating).max())
    if not difference <= PARITY_TOLERANCE:
        raise QuantizationError(
            f"probabilities differ by {difference:.3g} between integer arithmetic and float, "
            f"expected at most {PARITY_TOLERANCE:g}"
        )
    return difference


def measure_speed(before: Path, after: Path, data: Dataset) -> list[Speed]:
    """Images per second at each of BATCHES, in turns.

    CPU time of the one thread that computes: other processes on the machine hardly move it.
    """
    sessions = (_session(before), _session(after))
    speeds = []
    for batch in BATCHES:
        images = data.images[np.arange(batch) % len(data)]
        rounds = [[_seconds(session, images) for session in sessions] for _ in range(ROUNDS)]
        float32, int8 = (batch / statistics.median(column) for column in zip(*rounds, strict=True))
        speeds.append(Speed(batch, float32, int8))
    return speeds


def _seconds(session: onnxruntime.InferenceSession, images: NDArray[np.uint8]) -> float:
    """The mean CPU time of a run, over as many runs as fill ROUND_SECONDS; the first is not counted."""
    session.run(None, {"images": images})
    runs, begin = 0, time.thread_time()
    while (taken := time.thread_time() - begin) < ROUND_SECONDS:
        session.run(None, {"images": images})
        runs += 1
    return taken / runs


def _session(path: Path, optimised: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Without onnxruntime's advice to pre-process: the exporter has folded the graph already."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _source(parent: Path, version: int | None) -> Path:
    """The folder of the version that is asked for, or of the latest."""
    versions = sorted(int(path.parent.name) for path in parent.glob(f"[0-9]*/{MANIFEST_FILE}"))
    if not versions:
        raise QuantizationError(f"{parent} holds no version with a {MANIFEST_FILE}")
    if version is not None and version not in versions:
        raise QuantizationError(f"{parent} holds no version {version}, only {', '.join(map(str, versions))}")
    return parent / str(version or versions[-1])


def _check_source(manifest: Manifest, splits: Splits) -> None:
    model = f"{manifest.name}/{manifest.version}"
    if manifest.task != "classification":
        raise QuantizationError(f"{model} is a model for {manifest.task}, expected classification")
    if manifest.metrics.get("data_digest") != splits.digest:
        raise QuantizationError(
            f"{model} was trained on {manifest.metrics.get('data', 'unknown')}, digest "
            f"{manifest.metrics.get('data_digest')}, but the data given is {splits.name}, "
            f"digest {splits.digest}"
        )


def _load(path: Path) -> onnx.ModelProto:
    graph = onnx.load(path, load_external_data=False)
    if any(each.data_location == onnx.TensorProto.EXTERNAL for each in graph.graph.initializer):
        raise QuantizationError(f"{path} keeps weights in other files, expected all of them inside")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.graph.node):
        raise QuantizationError(f"{path} is quantised already")
    return graph


def _check_loss(metrics: Metrics, allowed_points: float) -> None:
    loss = float(metrics["accuracy_loss_points"])
    if loss > allowed_points:
        raise QuantizationError(
            f"int8 loses {loss:.2f} points of accuracy against {metrics['source']} (now "
            f"{metrics['test_accuracy']}), allowed are {allowed_points:.2f}: see --allow-loss"
        )


def _manifest(source: Manifest, path: Path, metrics: Metrics, splits: Splits) -> Manifest:
    return source.model_copy(
        update={
            "name": source.name + SUFFIX,
            "description": f"{source.description} In 8-bit integers.",
            "sha256": sha256_of(path),
            "metrics": {**metrics, "data": splits.name, "data_digest": splits.digest},
            "command": f"{source.command} && {command_line()}",
        }
    )


def cpu_name() -> str:
    """The CPU's name and those of its instructions that decide how fast int8 is; as Linux tells them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [
        flag
        for flag in facts.get("flags", "").split()
        if flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni")
    ]
    return f"{facts.get('model name', platform.machine())} ({', '.join(flags) or 'instructions unknown'})"


@dataclass(frozen=True)
class _Facts:
    """What the card tells besides metrics and speeds; sizes in bytes of model.onnx."""

    calibration_images: int
    compared_images: int
    difference: float
    float32_bytes: int
    int8_bytes: int


def _card_text(source: Manifest, made: Manifest, facts: _Facts, speeds: Sequence[Speed]) -> str:
    origin = f"{source.name}/{source.version}"
    rows = "\n".join(
        f"| {each.batch} | {each.float32:,.0f} | {each.int8:,.0f} | {each.int8 / each.float32:.2f} |"
        for each in speeds
    )
    metrics = "\n".join(f"| {name} | {value} |" for name, value in made.metrics.items())
    return f"""# {made.name}, version {made.version}

{made.description} Made from [{origin}](../../{origin}/{CARD_FILE}), which tells of data, architecture, \
training, intended use and limits; the tensors are the same.

## Method
Static quantisation by onnxruntime {onnxruntime.__version__}, in QuantizeLinear/DequantizeLinear form. \
Activations have 8 bits, unsigned; their scales are from the minimum and maximum over \
{facts.calibration_images} training images. Weights have 7 bits, signed, with one scale per output channel: \
so no 16-bit sum of two products saturates, and CPUs with and without VNNI compute the same integers. \
The first layer reads the raw bytes; the last one and softmax are in float32. Over \
{facts.compared_images} validation images the probabilities differ by at most {facts.difference:.2g} from \
those of the same graph computed in float (allowed: {PARITY_TOLERANCE:g}).

`{MODEL_FILE}` has {facts.int8_bytes:,} bytes, that of {origin} {facts.float32_bytes:,}.

```
{made.command.replace(" && ", chr(10))}
```

## Metrics
Measured on the test set, with onnxruntime on the CPU, from `{MODEL_FILE}` alone; `python -m training \
evaluate {made.name}` repeats it. `accuracy_loss_points` is the loss against {origin} in points of 100, \
negative for a gain; `source_agreement` the share of images that both put into the same class.

| metric | value |
|---|---|
{metrics}

## Speed
Images per second of CPU time, onnxruntime alone on one thread, median of {ROUNDS} rounds in turns, on \
{cpu_name()}:

| batch | {origin} | {made.name}/{made.version} | ratio |
|---|---|---|---|
{rows}
"""
