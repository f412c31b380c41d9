"""Metrics of exported models, measured from model.onnx alone with onnxruntime on the CPU.

`classification` and its parts are also what export writes into the manifest, so that a manifest's
numbers and a later evaluation come from the same code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read_manifest, sha256_of
from training.data import Dataset, Splits
from training.export import open_session, run_in_parts

Metrics = dict[str, float | int | str]

# Kernels differ from one CPU to another in the last bits of a float32 sum, which can move an image
# across a decision; counts may differ by one, other numbers by 1e-4 and 1e-4 of their size.
COUNT_TOLERANCE = 1
TOLERANCE = 1e-4

CALIBRATION_BINS = 15


class EvaluationError(Exception):
    """The model cannot be evaluated on this data; the message says why."""


def measure(manifest: Manifest, folder: Path, splits: Splits, models_dir: Path) -> Metrics:
    """Every metric of a version's manifest, measured again. The one place that tells the tasks apart."""
    if manifest.task == "classification":
        return classification(folder / MODEL_FILE, splits.test)
    raise EvaluationError(
        f"{manifest.name}: no metrics are known for the task {manifest.task!r} ({models_dir})"
    )


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


def negative_log_likelihood(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean of -ln p(label), in nats; a probability of 0 counts as float32's smallest."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error, over bins of equal width in confidence (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def brier_score(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean squared distance of the probabilities from the one-hot labels (Brier 1950); 0 to 2."""
    one_hot = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def worst_recall(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The share of its images that the worst recognised class gets right."""
    correct = probabilities.argmax(axis=1) == labels
    return min(float(correct[labels == label].mean()) for label in np.unique(labels))


def evaluate(names: Sequence[str], models_dir: Path, splits: Splits) -> bool:
    """Measure every version of the named models, or of all, and print a table; whether all agree.

    Raises EvaluationError if there is nothing to measure, or not with this data.
    """
    agreements = [_evaluate_version(folder, models_dir, splits) for folder in _versions(names, models_dir)]
    return all(agreements)


def differences(recorded: Mapping[str, float | int | str], seen: Mapping[str, float | int | str]) -> set[str]:
    """The names of the metrics that differ by more than the tolerance, or are on one side only."""
    return {name for name in {*recorded, *seen} if not _agree(recorded.get(name), seen.get(name))}


def _agree(recorded: float | int | str | None, seen: float | int | str | None) -> bool:
    if isinstance(recorded, int) and isinstance(seen, int):
        return abs(seen - recorded) <= COUNT_TOLERANCE
    if isinstance(recorded, (int, float)) and isinstance(seen, (int, float)):
        return abs(seen - recorded) <= TOLERANCE + TOLERANCE * abs(recorded)
    return recorded == seen


def _evaluate_version(folder: Path, models_dir: Path, splits: Splits) -> bool:
    manifest = read_manifest(folder)
    digest = sha256_of(folder / MODEL_FILE)
    if digest != manifest.sha256:
        raise EvaluationError(
            f"{folder / MODEL_FILE}: SHA-256 is {digest}, expected {manifest.sha256} ({MANIFEST_FILE})"
        )
    recorded = dict(manifest.metrics)
    data, data_digest = recorded.pop("data", "unknown"), recorded.pop("data_digest", "")
    if data_digest != splits.digest:
        raise EvaluationError(
            f"{folder} was measured on {data}, digest {data_digest}, "
            f"but the data given is {splits.name}, digest {splits.digest}"
        )
    seen = measure(manifest, folder, splits, models_dir)
    wrong = differences(recorded, seen)
    for name in sorted({*recorded, *seen}):
        mark = "DIFFERS" if name in wrong else "ok"
        model = f"{manifest.name}/{manifest.version}"
        print(f"{model:<12} {name:<20} {recorded.get(name, '-')!s:>14} {seen.get(name, '-')!s:>14}  {mark}")
    return not wrong


def _versions(names: Sequence[str], models_dir: Path) -> list[Path]:
    found = sorted(path.parent for path in models_dir.glob(f"[!._]*/[0-9]*/{MANIFEST_FILE}"))
    for name in names:
        if not any(folder.parent.name == name for folder in found):
            raise EvaluationError(f"{models_dir / name} holds no version with a {MANIFEST_FILE}")
    chosen = [folder for folder in found if not names or folder.parent.name in names]
    if not chosen:
        raise EvaluationError(f"{models_dir} holds no model")
    print(f"{'model':<12} {'metric':<20} {'manifest':>14} {'seen':>14}")
    return chosen
