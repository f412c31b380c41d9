"""Metrics of a generator's samples, against test images and against real images in their place."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from service.content.latents import draw_latents
from service.models.manifest import MODEL_FILE
from training.datasets.splits import Splits, spread
from training.evaluation.judge import Judge
from training.evaluation.metrics import Metrics, class_distance, frechet_distance, precision_recall
from training.onnx_files import open_session, run_in_parts
from training.versions import read_source

# The seed of the z of the samples that are measured and drawn.
SAMPLES_SEED = 1

# Precision and recall compare all pairs: of 5,000 images they take 100 MB and a second.
NEIGHBOUR_ROWS = 5000


def generation(path: Path, splits: Splits, judge: Judge) -> Metrics:
    """The metrics of a generator's samples: one sample per test image, with its label.

    Names that start with `real` are measured on as many training images in place of the samples: a
    perfect generator would get these, not 0 and 1. (The judge has seen these images in training, so its
    agreement with their labels is that of a training set.) label_agreement is the fraction of the samples
    that the judge reads as requested, worst_label_agreement that of the worst class; class_distance is the
    mean distance between two samples of a class.
    """
    reference, _ = judge(splits.test.images)
    labels = splits.test.labels
    metrics = quality(draw(path, labels), labels, reference, judge)
    rows = spread(len(splits.train), len(labels))
    real = quality(splits.train.images[rows], splits.train.labels[rows], reference, judge, "real_")
    return {"samples": len(labels)} | metrics | real | judge.identity


def conversion(path: Path, source: Path, labels: NDArray[np.int64]) -> Metrics:
    """How the samples of a generator on fewer bits differ from those of the version that it is made from.

    source: that version's folder. Raises EvaluationError if it is missing or changed.
    """
    manifest = read_source(path, source)
    before, after = (draw(graph, labels) for graph in (source / MODEL_FILE, path))
    return {
        "source": f"{manifest.name}/{manifest.version}",
        "source_sha256": manifest.sha256,
        "largest_change": largest_change(before, after),
    }


def largest_change(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> int:
    """The largest difference of a pixel, in grey levels of 255."""
    return int(np.abs(before.astype(int) - after).max())


def quality(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    reference: NDArray[np.float32],
    judge: Judge,
    prefix: str = "",
) -> Metrics:
    """The metrics of images (n, 28, 28) with labels (n,), against the features of real images, (m, d)."""
    features, seen = judge(images)
    precision, recall = precision_recall(
        reference[spread(len(reference), NEIGHBOUR_ROWS)], features[spread(len(features), NEIGHBOUR_ROWS)]
    )
    right = seen == labels
    return {
        f"{prefix}frechet_distance": round(frechet_distance(features, reference), 6),
        f"{prefix}precision": round(precision, 6),
        f"{prefix}recall": round(recall, 6),
        f"{prefix}class_distance": round(class_distance(features, labels), 6),
        f"{prefix}label_agreement": round(float(right.mean()), 6),
        f"{prefix}worst_label_agreement": round(
            min(float(right[labels == label].mean()) for label in np.unique(labels)), 6
        ),
    }


def draw(
    source: Path | onnx.ModelProto, labels: NDArray[np.int64], seed: int = SAMPLES_SEED
) -> NDArray[np.uint8]:
    """Samples of a generator's graph, one per label, from the z of a seed: (n, 28, 28) uint8."""
    session = open_session(source)
    size = next(each.shape[1] for each in session.get_inputs() if each.name == "z")
    z = draw_latents(seed, len(labels), size)
    images: NDArray[np.uint8]
    (images,) = run_in_parts(session, ["images"], {"z": z, "label": labels})
    return images
