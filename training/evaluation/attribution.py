"""Metrics of a gradient model: how nearly the attributions that it makes add up to what they explain."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.content.attributions import IntegratedGradients
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, ImageLayout
from training.datasets.splits import SIDE, Dataset, spread
from training.errors import EvaluationError
from training.evaluation.metrics import Metrics
from training.onnx_files import Arrays, open_session, run_in_parts
from training.versions import read_verified

EXPLAINED = 500
"""Images whose attributions are added up."""

STEPS = 64
"""Of the Riemann sum: what /explain does if it is not told otherwise."""

LAYOUT = ImageLayout(SIDE, SIDE, 1, False)


def gradients(path: Path, source: Path, test: Dataset) -> Metrics:
    """The metrics of a gradient model. source: the folder of the version that it is made from.

    Raises EvaluationError if that is missing or changed.
    """
    if not (source / MANIFEST_FILE).is_file():
        raise EvaluationError(f"{source}, from which {path} was made, is missing")
    manifest = read_verified(source)
    images = test.images[spread(len(test), min(EXPLAINED, len(test)))]
    classifier = open_session(source / MODEL_FILE)
    (probabilities,) = run_in_parts(classifier, ["probabilities"], {"images": images})
    (empty,) = run_in_parts(classifier, ["probabilities"], {"images": np.zeros_like(images[:1])})
    labels = probabilities.argmax(1)
    sums = integrated(path, images, labels).sum((1, 2))
    each = np.arange(len(images))
    missed = np.abs(sums - (probabilities[each, labels] - empty[0, labels]))
    return {
        "source": f"{manifest.name}/{manifest.version}",
        "source_sha256": manifest.sha256,
        "explained_images": len(images),
        "steps": STEPS,
        "completeness_error": round(float(missed.mean()), 6),
    }


def integrated(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], steps: int = STEPS
) -> NDArray[np.float32]:
    """The integrated gradients of images, (n, 28, 28), of the given labels. path: the gradient's graph."""
    method, session = IntegratedGradients(steps), open_session(path)
    maps = []
    for image, label in zip(images, labels.tolist(), strict=True):
        inputs: Arrays = {"images": method.rows(image), "label": np.full(steps, label, np.int64)}
        (seen,) = run_in_parts(session, ["gradient"], inputs)
        maps.append(method.attribute(image, LAYOUT, seen))
    return np.stack(maps)
