"""The command `quantize`: an int8 version of a published classifier, calibrated, measured and published.

Works on model.onnx alone, without the torch network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from service.models.folder import CARD_FILE, version_folders
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, sha256_of
from training.datasets.splits import Splits, spread
from training.errors import QuantizationError
from training.evaluation.classification import quantization
from training.evaluation.metrics import Metrics
from training.onnx_files import save_graph
from training.quantization.int8 import PARITY_TOLERANCE, check_integers, load_float32, to_int8
from training.quantization.speed import ROUNDS, Speed, cpu_name, measure_speed
from training.terminal import command_line
from training.versions import Target, read_verified, staging

SUFFIX = "-int8"
CALIBRATION_IMAGES = 500
ALLOWED_LOSS_POINTS = 0.10


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
    manifest = read_verified(source)
    _check_source(manifest, splits)
    calibration = splits.train.images[spread(len(splits.train), calibration_images)]
    if len(calibration) < calibration_images:
        raise QuantizationError(
            f"{calibration_images} calibration images asked for, {splits.name} has "
            f"{len(calibration)} to train"
        )
    graph = to_int8(load_float32(source / MODEL_FILE), calibration)
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


def _source(parent: Path, version: int | None) -> Path:
    """The folder of the version that is asked for, or of the latest."""
    versions = version_folders(parent, holding=MANIFEST_FILE)
    if not versions:
        raise QuantizationError(f"{parent} holds no version with a {MANIFEST_FILE}")
    if version is not None and version not in versions:
        raise QuantizationError(f"{parent} holds no version {version}, only {', '.join(map(str, versions))}")
    return versions[max(versions) if version is None else version]


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
