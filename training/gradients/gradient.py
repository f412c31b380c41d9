"""The command `gradient`: the graph of a published classifier's gradient, made, checked and published.

Works on model.onnx alone, without the torch network.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from service.models.folder import CARD_FILE, read_info, version_folders
from service.models.manifest import (
    GRADIENT_SUFFIX,
    MANIFEST_FILE,
    MODEL_FILE,
    UNKNOWN_SHA256,
    Manifest,
    TensorSpec,
)
from training.cards.card import command_lines, fill_page, section, table
from training.cards.front_matter import front_matter
from training.datasets.splits import Splits, spread
from training.errors import GradientError
from training.evaluation.attribution import gradients
from training.gradients.backward import GRADIENT, IMAGES, LABEL, gradient_graph
from training.onnx_files import open_graph, open_session, run_in_parts, save_graph
from training.provenance.bom import Considerations, write_bom
from training.provenance.commit import commit
from training.provenance.metadata import describe_graph
from training.sources import check_source
from training.terminal import command_line
from training.versions import Target, completed, read_verified, staging, write_manifest

CHECKED_IMAGES = 64
STEP = 1.0
"""Grey levels, to either side, of the differences that the gradients are compared with."""

TOLERANCE = 0.05
"""The largest accepted relative error of the mean, between the gradients and these differences: a wrong rule
gives 1 and more, and the curvature within two grey levels 0.001."""


def gradient(
    name: str, splits: Splits, models_dir: Path, version: int | None = None, force: bool = False
) -> Path:
    """Publish <name>-gradient under the version of the model that it is made from; returns its folder.

    version: None means the latest. force: replace the gradient's version if it exists.
    Raises SourceError, GradientError, ExportError or EvaluationError, and then publishes nothing.
    """
    source = _source(models_dir / name, version)
    manifest = read_verified(source)
    check_source(manifest, splits)
    graph = gradient_graph(onnx.load(source / MODEL_FILE))
    draft = _draft(manifest, splits)
    describe_graph(graph, draft, commit())
    with staging([name + GRADIENT_SUFFIX], Target(models_dir, manifest.version, force)) as (staged,):
        path = staged / MODEL_FILE
        save_graph(graph, path)
        error = check_differences(path, source / MODEL_FILE, splits.validation.images)
        made = completed(draft, staged, gradients(path, source, splits.test))
        write_manifest(staged, made)
        (staged / CARD_FILE).write_text(_page(manifest, made, error))
        write_bom(staged, made, _considerations(source), commit())
    return models_dir / made.name / staged.name


def check_differences(path: Path, source: Path, images: NDArray[np.uint8]) -> float:
    """Return the error of the gradients against differences of the classifier's own probabilities.

    Each image, at half its brightness, where fewer probabilities are 1, is moved along its own gradient by
    STEP to either side. The classifier reads float pixels here. Raises GradientError above TOLERANCE.
    """
    chosen = images[spread(len(images), min(CHECKED_IMAGES, len(images)))].astype(np.float32) / 2
    graph = onnx.load(source)
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    classifier = open_graph(graph)
    labels = run_in_parts(classifier, ["probabilities"], {IMAGES: chosen})[0].argmax(1)
    (seen,) = run_in_parts(open_session(path), [GRADIENT], {IMAGES: chosen, LABEL: labels})
    lengths = np.sqrt((seen**2).sum((1, 2), keepdims=True))
    ways = seen / np.maximum(lengths, 1e-30)
    after, before = (
        run_in_parts(classifier, ["probabilities"], {IMAGES: (chosen + side * ways).astype(np.float32)})[0]
        for side in (STEP, -STEP)
    )
    rows = np.arange(len(chosen))
    differences = (after[rows, labels] - before[rows, labels]) / (2 * STEP)
    error = float(abs(differences.sum() - lengths.sum()) / lengths.sum())
    if error > TOLERANCE:
        raise GradientError(
            f"the gradients differ from differences of probabilities by {error:.3f}, expected {TOLERANCE}"
        )
    return error


def _source(parent: Path, version: int | None) -> Path:
    """The folder of the requested version, or of the latest."""
    versions = version_folders(parent, holding=MANIFEST_FILE)
    if not versions:
        raise GradientError(f"{parent} holds no version with a {MANIFEST_FILE}")
    if version is not None and version not in versions:
        raise GradientError(f"{parent} holds no version {version}, only {', '.join(map(str, versions))}")
    return versions[max(versions) if version is None else version]


def _draft(source: Manifest, splits: Splits) -> Manifest:
    """The manifest before the graph is written and measured: without its checksum and most metrics."""
    shape = source.inputs[0].shape
    return Manifest(
        name=source.name + GRADIENT_SUFFIX,
        version=source.version,
        task="gradient",
        description=f"The gradient of one probability of {source.name} by the pixels of its images.",
        inputs=(
            TensorSpec(name=IMAGES, datatype="FP32", shape=shape),
            TensorSpec(name=LABEL, datatype="INT64", shape=shape[:1]),
        ),
        outputs=(TensorSpec(name=GRADIENT, datatype="FP32", shape=shape),),
        labels=source.labels,
        sha256=UNKNOWN_SHA256,
        metrics={"data": splits.name, "data_digest": splits.digest},
        command=f"{source.command} && {command_line()}",
    )


def _considerations(source: Path) -> Considerations:
    card = read_info(source).card
    return Considerations(
        section(card, "Architecture"),
        "Integrated gradients of the classifier that it is made from: POST /explain.",
        "A gradient tells what a small change of a pixel does to the probability, and not why.",
    )


def _page(source: Manifest, made: Manifest, error: float) -> str:
    """The model card."""
    return front_matter(made) + fill_page(
        "gradient",
        manifest=made,
        source=f"{source.name}/{source.version}",
        commands=command_lines(made.command),
        checked=CHECKED_IMAGES,
        error=error,
        step=STEP,
        tolerance=TOLERANCE,
        metrics=table(made.metrics.items()),
    )
