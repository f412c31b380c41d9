"""Published classifiers that other models are made from: quantised, combined, imitated. Needs no torch."""

from pathlib import Path

from service.models.folder import version_folders
from service.models.manifest import MANIFEST_FILE, OOD_SCORE, Manifest
from training.datasets.splits import Splits
from training.errors import SourceError


def version_folder(parent: Path, version: int | None) -> Path:
    """The folder of a model's requested version, or of the latest. Raises SourceError."""
    versions = version_folders(parent, holding=MANIFEST_FILE)
    if not versions:
        raise SourceError(f"{parent} holds no version with a {MANIFEST_FILE}")
    if version is not None and version not in versions:
        raise SourceError(f"{parent} holds no version {version}, only {', '.join(map(str, versions))}")
    return versions[max(versions) if version is None else version]


def unscored(manifest: Manifest) -> Manifest:
    """The manifest of a model without its `ood_score`, which models that are made from it need anew."""
    outputs = tuple(spec for spec in manifest.outputs if spec.name != OOD_SCORE)
    return manifest.model_copy(update={"outputs": outputs, "abstain_above": None})


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
