"""Metrics of a classifier's `ood_score`: how well it tells digits from other images."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from service.models.manifest import OOD_SCORE
from training.datasets.splits import Dataset
from training.evaluation.metrics import Metrics
from training.onnx_files import open_session, run_in_parts

ON_DIGITS = "abstained_digits"
ON_FASHION = ("auroc_fashion", "abstained_fashion")
"""The metrics that Fashion-MNIST is needed for."""


def scores(source: Path | onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a graph's `ood_score` of images, (n,)."""
    return run_in_parts(open_session(source), [OOD_SCORE], {"images": images})[0]


def auroc(inside: NDArray[np.float32], outside: NDArray[np.float32]) -> float:
    """The chance that an image from outside has the higher score than one from inside; ties count half.

    The area under the ROC curve, by ranks (Mann and Whitney 1947).
    """
    ordered = np.sort(inside)
    below = np.searchsorted(ordered, outside, "left") + np.searchsorted(ordered, outside, "right")
    return float(below.mean() / (2 * len(inside)))


def abstained(scored: NDArray[np.float32], threshold: float) -> float:
    """The fraction of the scores above the threshold."""
    return float((scored > threshold).mean())


def on_digits(path: Path, threshold: float, test: Dataset) -> Metrics:
    """The fraction of a test set that a classifier abstains from."""
    return {ON_DIGITS: round(abstained(scores(path, test.images), threshold), 6)}


def on_fashion(path: Path, threshold: float, test: Dataset, fashion: Dataset) -> Metrics:
    """How a classifier's score tells the test set from Fashion-MNIST's, and what it abstains from there."""
    inside, outside = scores(path, test.images), scores(path, fashion.images)
    values = auroc(inside, outside), abstained(outside, threshold)
    return dict(zip(ON_FASHION, (round(value, 6) for value in values), strict=True))
