"""The command `compare`: two classifiers on the same images."""

from pathlib import Path
from typing import Literal

from service.models.manifest import MODEL_FILE
from training.datasets.splits import Splits
from training.evaluation.classification import readings
from training.evaluation.significance import McNemar, mcnemar
from training.sources import check_source
from training.versions import read_verified


def compare(first: Path, second: Path, splits: Splits, on: Literal["validation", "test"]) -> McNemar:
    """Print both accuracies, and McNemar's test of the difference. Raises EvaluationError or SourceError."""
    data = splits.validation if on == "validation" else splits.test
    correct = []
    for folder in (first, second):
        manifest = read_verified(folder)
        check_source(manifest, splits)
        seen = readings(folder / MODEL_FILE, data).correct
        correct.append(seen)
        print(f"{folder}: accuracy {seen.mean():.4f}, {int((~seen).sum())} errors of {len(seen)}")
    result = mcnemar(*correct)
    print(
        f"only the first is right: {result.only_first}, only the second: {result.only_second}, "
        f"p = {result.p_value:.3g} (McNemar's exact test)"
    )
    return result
