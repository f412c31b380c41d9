"""Metrics of a classifier, and of its int8 version against it."""

from pathlib import Path

from service.models.manifest import MANIFEST_FILE, MODEL_FILE
from training.datasets.splits import Dataset
from training.errors import EvaluationError
from training.evaluation.metrics import (
    Metrics,
    brier_score,
    calibration_error,
    negative_log_likelihood,
    worst_recall,
)
from training.onnx_files import open_session, run_in_parts
from training.versions import read_verified


def classification(path: Path, test: Dataset) -> Metrics:
    """The metrics of a classifier on a test set."""
    (probabilities,) = run_in_parts(open_session(path), ["probabilities"], {"images": test.images})
    correct = probabilities.argmax(1) == test.labels
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
    """The metrics of a quantised classifier: its own, and its loss against the version it is made from.

    source: that version's folder. Raises EvaluationError if it is missing or changed.
    """
    if not (source / MANIFEST_FILE).is_file():
        raise EvaluationError(f"{source}, from which {path} was made, is missing")
    manifest = read_verified(source)
    before, after = (
        run_in_parts(open_session(graph), ["probabilities"], {"images": test.images})[0].argmax(1)
        for graph in (source / MODEL_FILE, path)
    )
    loss = 100 * float((before == test.labels).mean() - (after == test.labels).mean())
    return classification(path, test) | {
        "source": f"{manifest.name}/{manifest.version}",
        "source_sha256": manifest.sha256,
        "source_agreement": round(float((before == after).mean()), 6),
        "accuracy_loss_points": round(loss, 4),
    }
