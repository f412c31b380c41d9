"""Evaluation: every metric of a manifest measured again, from model.onnx alone, and compared.

The functions that measure are also those that export calls, so a manifest's numbers and a later
evaluation come from the same code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.models.folder import model_folders, version_folders
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from training.cost import MULTIPLY_ADDS, multiply_adds
from training.datasets.splits import Dataset, Splits
from training.errors import EvaluationError
from training.evaluation.abstention import ON_DIGITS, ON_FASHION, on_digits, on_fashion
from training.evaluation.attribution import gradients
from training.evaluation.classification import classification, quantization, scaling
from training.evaluation.generation import conversion, generation
from training.evaluation.judge import recorded_judge
from training.evaluation.likelihood import bound, encoding
from training.evaluation.metrics import Metrics
from training.evaluation.retrieval import caption_metrics, generator_of, prompted, search_metrics
from training.temperature_scaling import TEMPERATURE
from training.versions import read_verified

# Kernels differ from one CPU to another in the last bits of a float32 sum, which can move an image
# across a decision; counts may differ by one, other numbers by 1e-4 and 1e-4 of their size.
COUNT_TOLERANCE = 1
TOLERANCE = 1e-4
# A difference of two accuracies, each of which may move by TOLERANCE, in percentage points.
POINTS_TOLERANCE = 0.02


def evaluate(names: Sequence[str], models_dir: Path, splits: Splits, fashion: Dataset | None = None) -> bool:
    """Measure every version of the named models, or of all, and print a table; returns whether all agree.

    fashion: Fashion-MNIST's test images; the metrics that need them are left out without.

    Raises EvaluationError if there is nothing to measure, or if it was measured on other data.
    """
    agreements = [
        _evaluate_version(folder, models_dir, splits, fashion) for folder in _versions(names, models_dir)
    ]
    return all(agreements)


def measure(
    manifest: Manifest, folder: Path, splits: Splits, models_dir: Path, fashion: Dataset | None = None
) -> Metrics:
    """Every metric of a version's manifest, measured again.

    A generator, also one that drew for prompts, is judged by the version of the model that judged it first.
    Raises EvaluationError.
    """
    metrics = _quality(manifest, folder, splits, models_dir)
    path, threshold = folder / MODEL_FILE, manifest.abstain_above
    if threshold is not None and ON_DIGITS in manifest.metrics:
        metrics |= on_digits(path, threshold, splits.test)
        if fashion is not None:
            metrics |= on_fashion(path, threshold, splits.test, fashion)
    if TEMPERATURE in manifest.metrics:
        metrics |= scaling(path, splits.test)
    if MULTIPLY_ADDS in manifest.metrics:  # manifests older than this metric lack it
        metrics[MULTIPLY_ADDS] = multiply_adds(path)
    return metrics


def _quality(manifest: Manifest, folder: Path, splits: Splits, models_dir: Path) -> Metrics:
    """The metrics on the test set; only this function distinguishes the tasks."""
    path = folder / MODEL_FILE
    if manifest.task == "gradient":
        return gradients(path, models_dir / str(manifest.metrics["source"]), splits.test)
    source = models_dir / str(manifest.metrics["source"]) if "source" in manifest.metrics else None
    if manifest.task == "classification":
        return quantization(path, source, splits.test) if source else classification(path, splits.test)
    if manifest.task == "encoding":
        return encoding(path, splits.test)
    if manifest.task == "captioning":
        return caption_metrics(path, splits)
    judge = recorded_judge(manifest, models_dir)
    if manifest.task == "search":
        generator = generator_of(models_dir, str(manifest.metrics["generator"]))
        return search_metrics(path, splits) | prompted(path, generator, judge, splits)
    metrics = generation(path, splits, judge)
    if source is not None:
        metrics |= conversion(path, source, splits.test.labels)
    return metrics | bound(path, splits.test) if "test_elbo" in manifest.metrics else metrics


def differences(recorded: Mapping[str, float | int | str], seen: Mapping[str, float | int | str]) -> set[str]:
    """The names of the metrics that differ by more than the tolerance, or are on one side only."""
    return {name for name in {*recorded, *seen} if not _agree(name, recorded.get(name), seen.get(name))}


def _agree(name: str, recorded: float | int | str | None, seen: float | int | str | None) -> bool:
    if isinstance(recorded, int) and isinstance(seen, int):
        return abs(seen - recorded) <= COUNT_TOLERANCE
    if isinstance(recorded, (int, float)) and isinstance(seen, (int, float)):
        tolerance = POINTS_TOLERANCE if name.endswith("_points") else TOLERANCE
        return abs(seen - recorded) <= tolerance + TOLERANCE * abs(recorded)
    return recorded == seen


def _evaluate_version(folder: Path, models_dir: Path, splits: Splits, fashion: Dataset | None) -> bool:
    manifest = read_verified(folder)
    recorded = dict(manifest.metrics)
    data, data_digest = recorded.pop("data", "unknown"), recorded.pop("data_digest", "")
    recorded.pop("privacy", None)  # follows from the training, not from the graph
    if data_digest != splits.digest:
        raise EvaluationError(
            f"{folder} was measured on {data}, digest {data_digest}, "
            f"but the data given is {splits.name}, digest {splits.digest}"
        )
    if fashion is None:
        for name in ON_FASHION:
            recorded.pop(name, None)
    seen = measure(manifest, folder, splits, models_dir, fashion)
    wrong = differences(recorded, seen)
    for name in sorted({*recorded, *seen}):
        mark = "DIFFERS" if name in wrong else "ok"
        model = f"{manifest.name}/{manifest.version}"
        print(f"{model:<14} {name:<21} {recorded.get(name, '-')!s:>14} {seen.get(name, '-')!s:>14}  {mark}")
    return not wrong


def _versions(names: Sequence[str], models_dir: Path) -> list[Path]:
    found = [
        folder
        for model in model_folders(models_dir)
        for folder in version_folders(model, holding=MANIFEST_FILE).values()
    ]
    for name in names:
        if not any(folder.parent.name == name for folder in found):
            raise EvaluationError(f"{models_dir / name} holds no version with a {MANIFEST_FILE}")
    chosen = [folder for folder in found if not names or folder.parent.name in names]
    if not chosen:
        raise EvaluationError(f"{models_dir} holds no model")
    print(f"{'model':<14} {'metric':<21} {'manifest':>14} {'seen':>14}")
    return chosen
