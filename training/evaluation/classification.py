"""Metrics of a classifier, and of its versions on fewer bits against it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from service.models.manifest import MODEL_FILE
from training.datasets.splits import Dataset
from training.evaluation.metrics import (
    Metrics,
    brier_score,
    calibration_error,
    negative_log_likelihood,
    worst_recall,
)
from training.onnx_files import open_session, run_in_parts
from training.temperature_scaling import PROBABILITIES, TEMPERATURE, temperature_of, without_temperature
from training.versions import read_source


@dataclass(frozen=True)
class Readings:
    """What a classifier makes of images: probabilities (n, 10) float32; correct (n,) bool."""

    probabilities: NDArray[np.float32]
    correct: NDArray[np.bool_]


def readings(source: Path | onnx.ModelProto, data: Dataset) -> Readings:
    """Run a classifier's graph over images."""
    (probabilities,) = run_in_parts(open_session(source), [PROBABILITIES], {"images": data.images})
    return Readings(probabilities, probabilities.argmax(1) == data.labels)


def classification(path: Path, test: Dataset) -> Metrics:
    """The metrics of a classifier on a test set."""
    seen = readings(path, test)
    probabilities, correct = seen.probabilities, seen.correct
    return {
        "test_images": len(test),
        "test_accuracy": round(float(correct.mean()), 6),
        "test_errors": int((~correct).sum()),
        "test_nll": round(negative_log_likelihood(probabilities, test.labels), 6),
        "test_ece": round(calibration_error(probabilities, test.labels), 6),
        "test_brier": round(brier_score(probabilities, test.labels), 6),
        "test_worst_recall": round(worst_recall(probabilities, test.labels), 6),
    }


def quantization(path: Path, source: Path, test: Dataset) -> Metrics:
    """The metrics of a classifier on fewer bits: its own, and its loss against the version it is made from.

    source: that version's folder. Raises EvaluationError if it is missing or changed.
    """
    manifest = read_source(path, source)
    before, after = (readings(graph, test).probabilities.argmax(1) for graph in (source / MODEL_FILE, path))
    loss = 100 * float((before == test.labels).mean() - (after == test.labels).mean())
    return classification(path, test) | {
        "source": f"{manifest.name}/{manifest.version}",
        "source_sha256": manifest.sha256,
        "source_agreement": round(float((before == after).mean()), 6),
        "accuracy_loss_points": round(loss, 4),
    }


def scaling(path: Path, test: Dataset) -> Metrics:
    """The temperature that a graph divides its logits by, and its calibration on a test set without that."""
    graph = onnx.load(path)
    probabilities = readings(without_temperature(graph), test).probabilities
    return {
        TEMPERATURE: round(temperature_of(graph) or 1.0, 6),
        "untempered_test_nll": round(negative_log_likelihood(probabilities, test.labels), 6),
        "untempered_test_ece": round(calibration_error(probabilities, test.labels), 6),
    }
