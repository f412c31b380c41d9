"""Published classifiers that other models are made from: quantised, combined, imitated. Needs no torch."""

from service.models.manifest import Manifest
from training.datasets.splits import Splits
from training.errors import SourceError


def check_source(manifest: Manifest, splits: Splits) -> None:
    """Raise SourceError unless the model is a classifier that was trained on this data."""
    model = f"{manifest.name}/{manifest.version}"
    if manifest.task != "classification":
        raise SourceError(f"{model} is a model for {manifest.task}, expected classification")
    if manifest.metrics.get("data_digest") != splits.digest:
        raise SourceError(
            f"{model} was trained on {manifest.metrics.get('data', 'unknown')}, digest "
            f"{manifest.metrics.get('data_digest')}, but the data given is {splits.name}, "
            f"digest {splits.digest}"
        )
