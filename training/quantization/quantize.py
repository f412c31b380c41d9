"""The command `quantize`: an int8 version of a published classifier, calibrated, measured and published.

Works on model.onnx alone, without the torch network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from service.models.folder import CARD_FILE
from service.models.manifest import INT8_SUFFIX, MODEL_FILE, Manifest
from training.cards.card import command_lines, fill_page, table
from training.cards.front_matter import front_matter
from training.confidence.graph import without_score
from training.datasets.splits import Splits, spread
from training.errors import QuantizationError
from training.evaluation.classification import quantization
from training.evaluation.metrics import Metrics
from training.onnx_files import save_graph
from training.provenance.bom import write_bom
from training.provenance.commit import commit
from training.provenance.metadata import describe_graph
from training.quantization.int8 import PARITY_TOLERANCE, check_integers, load_float32, to_int8
from training.quantization.speed import ROUNDS, Speed, cpu_name, measure_speed, speed_rows
from training.sources import check_source, considerations_of, unscored, variant_draft, version_folder
from training.versions import Target, completed, read_verified, staging, write_manifest

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
    """Publish <name>-int8 under the version of the model that it is made from; returns its folder.

    version: None means the latest. force: replace the int8 version if it exists.
    Raises SourceError, QuantizationError, ExportError or EvaluationError, and then publishes nothing.
    """
    source = version_folder(models_dir / name, version)
    manifest = unscored(read_verified(source))
    check_source(manifest, splits)
    calibration = splits.train.images[spread(len(splits.train), calibration_images)]
    if len(calibration) < calibration_images:
        raise QuantizationError(
            f"{calibration_images} calibration images requested, {splits.name} has "
            f"{len(calibration)} training images"
        )
    graph = to_int8(without_score(load_float32(source / MODEL_FILE)), calibration)
    target = Target(models_dir, manifest.version, force)
    draft = variant_draft(manifest, INT8_SUFFIX, "In 8-bit integers.", splits, target)
    describe_graph(graph, draft, commit())
    with staging([name + INT8_SUFFIX], target) as (staged,):
        save_graph(graph, staged / MODEL_FILE)
        difference = check_integers(staged / MODEL_FILE, splits.validation.images)
        metrics = quantization(staged / MODEL_FILE, source, splits.test)
        _check_loss(metrics, allowed_loss_points)
        made = completed(draft, staged, metrics)
        write_manifest(staged, made)
        speeds = measure_speed(source / MODEL_FILE, staged / MODEL_FILE, {"images": splits.validation.images})
        sizes = [(folder / MODEL_FILE).stat().st_size for folder in (source, staged)]
        facts = _Facts(calibration_images, len(splits.validation), difference, *sizes)
        (staged / CARD_FILE).write_text(_page(manifest, made, facts, speeds))
        write_bom(staged, made, considerations_of(source), commit())
    return models_dir / made.name / staged.name


def _check_loss(metrics: Metrics, allowed_points: float) -> None:
    loss = float(metrics["accuracy_loss_points"])
    if loss > allowed_points:
        raise QuantizationError(
            f"int8 loses {loss:.2f} percentage points of accuracy against {metrics['source']} (now "
            f"{metrics['test_accuracy']}), expected at most {allowed_points:.2f}: see --allow-loss"
        )


@dataclass(frozen=True)
class _Facts:
    """What the card reports in addition to metrics and speeds; sizes in bytes of model.onnx."""

    calibration_images: int
    compared_images: int
    difference: float
    float32_bytes: int
    int8_bytes: int


def _page(source: Manifest, made: Manifest, facts: _Facts, speeds: Sequence[Speed]) -> str:
    """The model card."""
    return front_matter(made) + fill_page(
        "int8",
        manifest=made,
        source=f"{source.name}/{source.version}",
        onnxruntime=onnxruntime.__version__,
        facts=facts,
        tolerance=PARITY_TOLERANCE,
        commands=command_lines(made.command),
        metrics=table(made.metrics.items()),
        rounds=ROUNDS,
        cpu=cpu_name(),
        speeds=table(speed_rows(speeds)),
    )
